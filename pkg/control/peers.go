package control

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/bmpha/bmpha/pkg/bgp"
	"github.com/bmpha/bmpha/pkg/bmp"
	"github.com/bmpha/bmpha/pkg/table"
)

// RouterPeers is a router with its BGP peers, as its table knows them.
type RouterPeers struct {
	Router  string `json:"router"`               // identity across collectors
	Address string `json:"bmp_router,omitempty"` // of its session
	State   string `json:"state,omitempty"`      // of its session: up, down
	// NoTable is why there is no table of it, and nothing else to show.
	NoTable  string `json:"no_table,omitempty"`
	SysName  string `json:"sysname,omitempty"`
	SysDescr string `json:"sysdescr,omitempty"`
	Routes   int    `json:"routes"` // announced, stale ones included
	Stale    int    `json:"stale"`  // of the session before, and not yet mentioned in this one
	Peers    []Peer `json:"peers"`
}

// States of a Peer.
const (
	PeerUp      = "up"
	PeerDown    = "down"
	PeerAwaited = "awaited" // it was up in the router's last session, and not yet in this one
)

// A Peer is a BGP peer of a router, or its Loc-RIB. What only a Peer Up tells is
// absent while it is not up.
type Peer struct {
	IP    string `json:"peer_ip"`      // 0.0.0.0 for a Loc-RIB
	RD    string `json:"rd,omitempty"` // distinguisher of its instance
	Type  string `json:"peer_type"`    // global, rd, local, loc-rib
	AS    uint32 `json:"peer_asn"`
	BGPID string `json:"bgp_id"`
	State string `json:"state"`
	// Since is when the router says that it came up or went down; absent when it
	// does not say.
	Since time.Time `json:"since,omitzero"`

	LocalIP    string `json:"local_ip,omitempty"`
	LocalPort  uint16 `json:"local_port,omitempty"`
	RemotePort uint16 `json:"remote_port,omitempty"`
	LocalAS    uint32 `json:"local_asn,omitempty"`
	HoldTime   uint16 `json:"hold_time,omitempty"` // s, the smaller of both
	VRF        string `json:"vrf,omitempty"`       // VRF or table name
	// FourOctetAS and AddPath are what both ends can: AS numbers of four octets, and
	// the families whose routes have path identifiers.
	FourOctetAS bool     `json:"four_octet_as"`
	AddPath     []string `json:"add_path"`
	Families    []string `json:"families"` // that both ends announce

	// Down is why it is down.
	Down *Down `json:"down,omitempty"`

	Routes    int   `json:"routes"`
	Stale     int   `json:"stale"`
	Withdrawn int   `json:"withdrawn"` // kept although withdrawn
	RIBs      []RIB `json:"ribs"`
}

// A Down is the reason of a Peer Down Notification, in numbers and words.
type Down struct {
	Reason uint8 `json:"reason"`
	// Code and Subcode are of the NOTIFICATION, of reasons 1 and 3.
	Code    uint8 `json:"code,omitempty"`
	Subcode uint8 `json:"subcode,omitempty"`
	// Event is of the state machine, of reason 2.
	Event uint16 `json:"event,omitempty"`
	Text  string `json:"text"`
}

// A RIB is one family of one of a peer's tables.
type RIB struct {
	RIB       string `json:"rib"`    // one of RIBWords
	Family    string `json:"family"` // one of FamilyWords
	BGPID     string `json:"bgp_id"`
	State     string `json:"state"` // of its dump: begin, dump, end-of-rib, live
	AddPath   bool   `json:"add_path"`
	Routes    int    `json:"routes"`
	Stale     int    `json:"stale"`
	Withdrawn int    `json:"withdrawn"`
}

func (s *Server) servePeers(w http.ResponseWriter, r *http.Request) {
	v, err := url.ParseQuery(r.URL.RawQuery)
	if err == nil {
		for key := range v {
			if key != "router" || len(v[key]) > 1 || len(v.Get(key)) > maxName {
				err = &QueryError{key, v.Get(key), "router alone, and only once"}
			}
		}
	}
	if err != nil {
		fail(w, http.StatusBadRequest, codeBad, err)
		return
	}
	tables, err := s.tablesOf(v.Get("router"), false)
	if err != nil {
		failLookup(w, err)
		return
	}
	if !s.admit() {
		fail(w, http.StatusServiceUnavailable, codeBusy, errBusy)
		return
	}
	defer func() { <-s.queries }()
	out := newStream(w, r)
	defer out.close()
	for i := range tables {
		line, err := json.Marshal(peersOf(&tables[i]))
		if err == nil {
			err = out.write(r.Context(), append(line, '\n'))
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	out.end(len(tables), false)
}

// peersOf reads what t has.
func peersOf(t *RouterTable) *RouterPeers {
	r := &RouterPeers{Router: t.Router, State: t.State, Peers: []Peer{}}
	if t.Address.IsValid() {
		r.Address = t.Address.Unmap().WithZone("").String()
	}
	if t.Table == nil {
		r.NoTable = t.Off
		return r
	}
	if m := t.Table.Initiation(); m != nil {
		for tlvs := bmp.ParseInitiation(m); tlvs.Next(); {
			switch tlv := tlvs.TLV(); tlv.Type {
			case bmp.InitSysName:
				r.SysName = clean(string(tlv.Value))
			case bmp.InitSysDescr:
				r.SysDescr = clean(string(tlv.Value))
			}
		}
	}
	for _, s := range t.Table.Peers() {
		p := peerOf(&s)
		r.Routes += p.Routes
		r.Stale += p.Stale
		r.Peers = append(r.Peers, p)
	}
	return r
}

var peerTypes = [...]string{bmp.PeerGlobal: "global", bmp.PeerRD: "rd", bmp.PeerLocal: "local", bmp.PeerLocRIB: "loc-rib"}

func peerOf(s *table.PeerStatus) Peer {
	p := Peer{IP: s.ID.Address().String(), AS: s.AS, State: PeerAwaited, AddPath: []string{}, Families: []string{}, RIBs: []RIB{}}
	if s.ID.Distinguisher != [8]byte{} {
		p.RD = rdText(s.ID.Distinguisher)
	}
	if s.Up {
		p.State = PeerUp
	}
	if len(s.PeerUps) > 0 {
		if u, err := bmp.ParsePeerUp(s.PeerUps[0]); err == nil {
			p.header(&u.Peer)
			p.opened(&u)
		}
	}
	if s.Down != nil {
		p.State = PeerDown
		if d, err := bmp.ParsePeerDown(s.Down); err == nil {
			p.header(&d.Peer)
			p.Down = downOf(&d)
		}
	}
	for _, rs := range s.RIBs {
		if p.BGPID == "" { // awaited
			p.BGPID, p.Type = idText(rs.RIB.BGPID), peerType(rs.RIB.Type)
		}
		for _, f := range rs.Families {
			rib := RIB{
				Family: familyWord(f.Family), BGPID: idText(rs.RIB.BGPID), State: f.State.String(),
				AddPath: f.AddPath, Routes: f.Routes, Stale: f.Stale, Withdrawn: f.Withdrawn,
			}
			if int(rs.RIB.Kind) < len(RIBWords) {
				rib.RIB = RIBWords[rs.RIB.Kind]
			}
			p.RIBs = append(p.RIBs, rib)
			p.Routes += f.Routes
			p.Stale += f.Stale
			p.Withdrawn += f.Withdrawn
		}
	}
	return p
}

func idText(id [4]byte) string { return netip.AddrFrom4(id).String() }

func peerType(t byte) string {
	if int(t) < len(peerTypes) {
		return peerTypes[t]
	}
	return fmt.Sprintf("type %d", t)
}

// header takes what the per-peer header of the last Peer Up or Peer Down says.
func (p *Peer) header(h *bmp.PerPeer) {
	p.Type, p.BGPID = peerType(h.Type), idText(h.BGPID)
	if h.Sec != 0 {
		p.Since = time.Unix(int64(h.Sec), int64(min(h.Usec, 999999))*1000).UTC()
	}
}

// opened takes what was negotiated.
func (p *Peer) opened(u *bmp.PeerUp) {
	p.LocalIP, p.LocalPort, p.RemotePort = u.LocalAddr.String(), u.LocalPort, u.RemotePort
	for tlvs := u.TLVs; tlvs.Next(); {
		if tlv := tlvs.TLV(); tlv.Type == bmp.PeerUpVRFTable {
			p.VRF = clean(string(tlv.Value))
		}
	}
	sent, as, four, err := bgp.ParseStrictOpen(u.Sent)
	if err != nil {
		return
	}
	received, _, remoteFour, err := bgp.ParseStrictOpen(u.Received)
	if err != nil {
		return
	}
	p.LocalAS, p.HoldTime, p.FourOctetAS = as, min(sent.HoldTime, received.HoldTime), four && remoteFour
	for _, f := range bgp.Families {
		if sent.Multiprotocol(f) && received.Multiprotocol(f) {
			p.Families = append(p.Families, familyWord(f))
		}
		// As package table decides how routes are read.
		if from := received.AddPath(f); sent.AddPath(f) != 0 && from != 0 && from != bgp.AddPathReceive {
			p.AddPath = append(p.AddPath, familyWord(f))
		}
	}
}

// notifications are the error codes of a NOTIFICATION, RFC 4271 section 4.5 and
// RFC 7313 section 5.
var notifications = [...]string{
	1: "message header error", 2: "OPEN message error", 3: "UPDATE message error", 4: "hold timer expired",
	5: "state machine error", 6: "cease", 7: "ROUTE-REFRESH message error",
}

// ceases are the subcodes of a Cease, RFC 4486, RFC 8538 and RFC 9384.
var ceases = [...]string{
	1: "maximum number of prefixes reached", 2: "administrative shutdown", 3: "peer deconfigured", 4: "administrative reset",
	5: "connection rejected", 6: "other configuration change", 7: "connection collision resolution", 8: "out of resources",
	9: "hard reset", 10: "BFD down",
}

func downOf(d *bmp.PeerDown) *Down {
	down := &Down{Reason: d.Reason}
	switch d.Reason {
	case bmp.DownLocalNotification, bmp.DownRemoteNotification:
		by := "sent"
		if d.Reason == bmp.DownRemoteNotification {
			by = "received"
		}
		if len(d.Data) < bgp.HeaderLen+2 || d.Data[bgp.HeaderLen-1] != bgp.TypeNotification {
			down.Text = "NOTIFICATION " + by
			break
		}
		n := d.Data[bgp.HeaderLen:]
		down.Code, down.Subcode = n[0], n[1]
		down.Text = by + ": " + notificationText(n)
	case bmp.DownLocal:
		down.Event, _ = d.Event()
		down.Text = fmt.Sprintf("closed by the router, FSM event %d", down.Event)
	case bmp.DownRemote:
		down.Text = "closed by the peer without a NOTIFICATION"
	case bmp.DownDeconfigured:
		down.Text = "no longer monitored"
	case bmp.DownLocRIB:
		down.Text = "Loc-RIB no longer monitored"
	default:
		down.Text = fmt.Sprintf("reason %d", d.Reason)
	}
	return down
}

// notificationText says what a NOTIFICATION says, in words, with the operator's own
// where it has them (RFC 9003). n begins with the code.
func notificationText(n []byte) string {
	code, sub, data := n[0], n[1], n[2:]
	const cease = 6
	text := fmt.Sprintf("NOTIFICATION %d/%d", code, sub)
	if int(code) < len(notifications) && notifications[code] != "" {
		text += ", " + notifications[code]
	}
	if code != cease || int(sub) >= len(ceases) || ceases[sub] == "" {
		return text
	}
	text += ": " + ceases[sub]
	if shutdown := []byte{2, 4}; slices.Contains(shutdown, sub) && len(data) > 1 && int(data[0]) <= len(data)-1 && data[0] > 0 {
		text += ` ("` + clean(string(data[1:1+data[0]])) + `")`
	}
	return text
}
