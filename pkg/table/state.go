package table

import "fmt"

// A State is how far a family of a RIB has come since its session or its peer
// was opened.
type State uint8

const (
	// Begin: opened, and nothing was heard of the family since. Routes are those
	// of the generation before, and stale.
	Begin State = iota
	// Dump: routes come. What is not stale is current.
	Dump
	// EndOfRIB: the dump is over, and what it did not mention is being removed.
	EndOfRIB
	// Live: nothing is stale.
	Live
	numStates
)

var stateNames = [...]string{"begin", "dump", "end-of-rib", "live"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// An event is what moves a family from one state to another.
type event uint8

const (
	opened event = iota // a new generation begins
	route               // a route was announced or withdrawn
	marker              // End-of-RIB, or a quiet time in place of it
	swept               // the last stale route is gone
	numEvents
)

// transitions is the next state by state and event. A router that goes on after
// its End-of-RIB is live; a second marker changes nothing. Nothing is swept
// before a dump has ended.
var transitions = [numStates][numEvents]State{
	Begin:    {opened: Begin, route: Dump, marker: EndOfRIB, swept: Begin},
	Dump:     {opened: Begin, route: Dump, marker: EndOfRIB, swept: Dump},
	EndOfRIB: {opened: Begin, route: EndOfRIB, marker: EndOfRIB, swept: Live},
	Live:     {opened: Begin, route: Live, marker: Live, swept: Live},
}

func (s State) after(e event) State { return transitions[s][e] }
