//! Short stories against the real thing. One binary, so that it links once; each story has its own ports.

mod deploys;
mod discovery;
mod edge;
mod front;
mod handover;
mod harness;
mod hostile;
mod http2;
mod lean;
mod limits;
mod resilience;
mod seen;
mod siege;
mod swarm;
mod switching;
mod tls;
