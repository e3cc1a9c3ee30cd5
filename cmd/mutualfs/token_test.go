package main

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/mutualfs/mutualfs/blocks"
)

func sampleToken() *token {
	return &token{
		Ring: ringFile{Format: ringFormat, Ring: blocks.HashID([]byte("r")), DataShards: 4, Tolerate: 2, StripeSize: stripeSize,
			VnodeSize: 1 << 30, Bootstrap: []string{"127.0.0.1:7440"}},
		Secret: bytes.Repeat([]byte{7}, keySize), VolumeKey: bytes.Repeat([]byte{9}, keySize),
	}
}

func TestTokenRoundTrip(t *testing.T) {
	want := sampleToken()
	text, err := want.String()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseToken("\n " + text + "\n")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
}

func TestDamagedTokensAreRefused(t *testing.T) {
	text, err := sampleToken().String()
	if err != nil {
		t.Fatal(err)
	}
	for i := range text {
		bad := text[:i] + string(rune('A'+(text[i]+1)%26)) + text[i+1:]
		if bad == text {
			continue
		}
		if tok, err := parseToken(bad); err == nil && !reflect.DeepEqual(tok, sampleToken()) {
			t.Fatalf("a token with character %d changed was accepted as %+v", i, tok)
		}
		if _, err := parseToken(text[:i]); err == nil {
			t.Fatalf("a token cut after %d characters was accepted", i)
		}
	}
	if _, err := parseToken("hello"); err == nil || !strings.Contains(err.Error(), "mutualfs invite") {
		t.Fatalf("the error for nonsense is %v", err)
	}
}

func FuzzToken(f *testing.F) {
	text, err := sampleToken().String()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(tokenPrefix)
	f.Fuzz(func(t *testing.T, s string) {
		if tok, err := parseToken(s); err == nil && tok.Ring.validate() != nil {
			t.Fatal("an invalid ring was accepted")
		}
	})
}
