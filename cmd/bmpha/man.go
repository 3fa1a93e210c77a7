package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"
)

// manCommand prints the manual page, which make install puts in its place.
func manCommand() *cli.Command {
	return &cli.Command{
		Name:   "man",
		Usage:  "print the manual page",
		Hidden: true,
		Description: "Example:\n" +
			"  bmpha man | man -l -",
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("man takes no arguments, found %q", c.Args().First())
			}
			page, err := c.App.ToManWithSection(1)
			if err != nil {
				return fmt.Errorf("make the manual page: %w", err)
			}
			page = examples.ReplaceAllString(page, "\n.EX\n$1.EE\n")
			page = strings.TrimRight(page, "\n") + "\n" + manTail
			_, err = fmt.Fprint(c.App.Writer, page)
			return err
		},
	}
}

// examples are lines of a description that are not to be filled.
var examples = regexp.MustCompile(`\n((?:[A-Z][^\n:]*: +bmpha [^\n]*\n)+)`)

// manTail is what the commands' own help does not know of.
const manTail = `.SH EXIT STATUS
.TP
0
done; of \fBstatus\fP: active and healthy
.TP
1
an error; what is wrong is on standard error
.TP
3
of \fBstatus\fP: standby and healthy
.TP
4
of \fBstatus\fP: something is wrong, named on the screen; of \fBroutes\fP,
\fBpeers\fP and \fBverify\fP: the collector does not answer
.TP
5
no collector answers on the socket
.TP
6
of \fBmaintenance\fP: refused, nothing was changed
.TP
7
of \fBmaintenance\fP: begun, but not seen to happen in time, or no answer
.TP
8
of \fBverify\fP: faults or differences were found
.TP
9
of \fBroutes\fP and \fBpeers\fP: nothing was found; of \fBverify\fP: the collector
has not heard the router
.TP
10
of \fBroutes\fP, \fBpeers\fP and \fBverify\fP: the collector keeps no table of routes
.TP
130
of \fBdemo\fP: interrupted

.SH SIGNALS
.TP
TERM, INT
stop: hand over, or send everything if nobody else is there
.TP
34
take a new timestamp: another collector takes over
.TP
35, 36, 37
be active, be standby, back to the election

.SH ENVIRONMENT
Every key of the configuration can be set by a variable, which wins over the file:
\fBBMPHA_\fP and the key in upper case with underscores, as in
\fBBMPHA_REDIS_PASSWORD\fP. \fBBMPHA_CONFIG\fP names the configuration,
\fBBMPHA_SOCKET\fP the control socket.

.SH FILES
.TP
/etc/bmpha/bmpha.yaml
the configuration; every key is explained in share/doc/bmpha/bmpha.yaml
.TP
/run/bmpha/bmpha.sock
where a running collector answers
`
