// Package capture holds BMP streams of real routers, recorded by this project:
// what one session brought from its first byte on. The demo and benchmarks
// replay them. README.md says how they were made.
//
// The slices are shared; they are not to be changed.
package capture

import _ "embed"

// FRR is a session of FRR 8.4.4: Adj-RIB-In, pre- and post-policy, one prefix in
// each Route Monitoring message.
//
//go:embed frr.bmp
var FRR []byte

// GoBGP is a session of GoBGP 3.10.0: Adj-RIB-In, pre- and post-policy, and
// Loc-RIB.
//
//go:embed gobgp.bmp
var GoBGP []byte
