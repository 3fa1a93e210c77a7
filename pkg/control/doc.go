// Package control is what operators see of a collector: the status document, a
// small HTTP API on a Unix socket that serves it and takes requests for
// maintenance, metrics, a screen of text, and a looking glass into the tables of
// the routers.
//
// What it promises:
//
//   - There is one source of truth. [Status] is filled by the collector once per
//     request; the API, the metrics and the screen derive everything from it.
//     Each number in it is a metric.
//   - The document is stable: keys are lower_snake and carry their unit, a key
//     never changes its meaning, a new key may appear at any time. Readers ignore
//     what they do not know, so that old and new versions work together.
//   - [Problems] and [ExitCode] are pure: the same document and time give the
//     same words, in the shell, in the JSON and in a test.
//   - What comes from routers, Redis or brokers is shown without control
//     characters; it cannot steer a terminal.
//   - A request that is malformed, too large or slow ends itself only.
//   - The looking glass holds no table for longer than a step of some hundred
//     routes, and none while it writes; it keeps about a megabyte for each query,
//     of which there are a few at a time. A client that goes away ends its query.
//
// # The API on the socket
//
//	GET  /v1/status       a [Status]
//	POST /v1/maintenance  a [MaintainRequest], answered by a [MaintainResult]
//	GET  /v1/healthz      200 or 503
//	GET  /v1/routes       a [Query], answered by a [Route] in each line
//	GET  /v1/peers        router=NAME or nothing, answered by [RouterPeers] in each line
//
// What is answered in lines ends with the trailers Bmpha-Found, how many lines, and
// Bmpha-More, true where the limit has cut them off; without these it is not whole.
// The header Bmpha-Without names routers that keep no table, the trailer
// Bmpha-Telling, where no route was found, those that have not ended telling theirs.
// The order of lines is that of routers, and within one, with some hundred RIBs at
// most, of families, route distinguishers and prefixes; of a prefix looked up, of
// RIBs. What changes meanwhile may be missed.
// The TCP listener has no access control; it serves metrics, probes and profiles,
// and neither the status nor routes.
//
// The status and all that is made of it know nothing of BMP, Redis or Kafka.
package control
