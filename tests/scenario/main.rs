//! Short stories against the real thing. One binary, so that it links once; each story has its own ports.

mod acme;
mod authority;
mod deploys;
mod discovery;
mod dns;
mod edge;
mod front;
mod handover;
mod harness;
mod hostile;
mod lean;
mod limits;
mod pebble;
mod probing;
mod renewal;
mod resilience;
mod secrecy;
mod secure;
mod seen;
mod siege;
mod stream;
mod swarm;
mod switching;
mod tls;
