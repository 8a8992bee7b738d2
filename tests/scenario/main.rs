//! Short stories against the real thing. One binary, so that it links once; each story has its own ports.

mod discovery;
mod edge;
mod harness;
mod lean;
mod seen;
mod swarm;
mod tls;
mod upgrade;
