//go:build race

package register_test

const raceEnabled = true
