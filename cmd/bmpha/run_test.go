package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bmpha/bmpha/pkg/config"
)

// No two members have an id in common, among all that the sink makes of one, and all
// begin with what the documentation tells brokers to allow.
func TestTransactionalID(t *testing.T) {
	type member struct {
		cluster string
		id      int
		process string
	}
	owners := make(map[string]member)
	for _, cluster := range []string{"bmpha", "a", "a.0", "a.0.1", "a.0.x"} {
		for _, id := range []int{0, 1, 10} {
			for _, process := range []string{"x", "x-single", "x-apart", "x.single", "1.x", "0.1.x", "x.0.1.x", ".x", "x.0", "-single"} {
				m := member{cluster, id, process}
				var cfg config.Config
				cfg.Cluster.Name, cfg.Cluster.ID = cluster, id
				own := transactionalID(&cfg, process)
				if prefix := fmt.Sprintf("bmpha.%s.%d.", cluster, id); !strings.HasPrefix(own, prefix) {
					t.Errorf("%+v: id %s does not begin with %s", m, own, prefix)
				}
				for _, suffix := range []string{"", "+single", "+apart"} {
					if other, ok := owners[own+suffix]; ok {
						t.Errorf("%+v and %+v share %s", m, other, own+suffix)
					}
					owners[own+suffix] = m
				}
			}
		}
	}
}
