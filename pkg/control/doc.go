// Package control is what operators see of a collector: the status document, a
// small HTTP API on a Unix socket that serves it and takes requests for
// maintenance, metrics, and a screen of text.
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
//
// The package knows nothing of BMP, Redis or Kafka and imports nothing of bmpha.
package control
