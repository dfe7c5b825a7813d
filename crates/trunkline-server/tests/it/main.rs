//! The embedded server against raw sockets: what comes in is made by hand, byte for byte, and next to every test a
//! well-behaved client goes on working.

mod auth;
mod bad_input;
mod bridge;
mod client;
mod compared;
mod differential;
mod fairness;
mod fixture;
mod http;
mod limits;
mod metrics;
mod observe;
mod observe_apart;
mod session;
mod tls;
mod websocket;
