//! Short stories against the real thing. One binary, so that it links once; each story has its own ports.

mod deploys;
mod discovery;
mod edge;
mod harness;
mod resilience;
mod swarm;
mod tls;
