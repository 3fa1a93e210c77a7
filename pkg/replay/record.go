package replay

import "encoding/json"

// A Route is what one of pmacct's JSON records, of either dialect, tells of a route;
// what it does not tell is zero. Decode it with encoding/json.
type Route struct {
	Router    string          `json:"bmp_router"`
	Peer      string          `json:"peer_ip"`
	RD        string          `json:"rd"`
	RDOrigin  string          `json:"rd_origin"` // "bmp": RD is the peer's distinguisher
	AFI       uint16          `json:"afi"`
	SAFI      uint8           `json:"safi"`
	Prefix    string          `json:"ip_prefix"`
	PathID    *int64          `json:"as_path_id"`
	NextHop   string          `json:"bgp_nexthop"`
	ASPath    string          `json:"as_path"`
	Origin    string          `json:"origin"`
	Comms     string          `json:"comms"`
	EComms    json.RawMessage `json:"ecomms"`
	LComms    string          `json:"lcomms"`
	MED       *uint32         `json:"med"`
	LocalPref *uint32         `json:"local_pref"`
	AIGP      json.RawMessage `json:"aigp"`
	SID       json.RawMessage `json:"psid_li"`
	OTC       json.RawMessage `json:"otc"`
	MPLSLabel json.RawMessage `json:"mpls_label"`
	Label     json.RawMessage `json:"label"` // of 1.7.7
}

// A Record is the part of pmacct's JSON records that tables are made of.
type Record struct {
	Route
	LogType  string `json:"log_type"`
	MsgType  string `json:"bmp_msg_type"`
	Event    string `json:"event_type"`
	PeerType int    `json:"peer_type"`
	PD       string `json:"pd"`
	IsPost   int    `json:"is_post"`
	IsIn     int    `json:"is_in"`
	IsOut    int    `json:"is_out"`
	IsLoc    int    `json:"is_loc"`
}

// RIB returns which of its peer's tables a record is about.
func (r *Record) RIB() RIB {
	switch {
	case r.IsLoc == 1:
		return Loc
	case r.IsOut == 1 && r.IsPost == 1:
		return OutPost
	case r.IsOut == 1:
		return OutPre
	case r.IsPost == 1:
		return InPost
	}
	return InPre
}

// A Peer is who a peer of a router is, as far as records tell: those of VPN routes
// do not tell its distinguisher.
type Peer struct {
	Addr          string
	Distinguisher string
	Loc           bool // the router's own Loc-RIB
}

// Of returns the peer that a record is about.
func (r *Record) Of() Peer {
	p := Peer{Addr: r.Peer, Distinguisher: r.PD, Loc: r.IsLoc == 1 || r.PeerType == locRIBPeer}
	if r.RDOrigin == "bmp" {
		p.Distinguisher = r.RD
	}
	return p
}

// Key returns which route a record is about.
func (r *Record) Key() Key {
	k := Key{Router: r.Router, RD: r.RD, Peer: r.Peer, RIB: r.RIB(), AFI: r.AFI, SAFI: r.SAFI, Prefix: r.Prefix, PathID: -1}
	if r.PathID != nil {
		k.PathID = *r.PathID
	}
	return k
}

func (r *Record) value() value {
	return value{r.NextHop, r.ASPath, r.Origin, r.Comms, r.LComms, r.MED, r.LocalPref}
}
