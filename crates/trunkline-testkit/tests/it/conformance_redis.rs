//! The `redis` backend keeps every guarantee of its column on a real `redis-server` with an append-only file.

use trunkline_testkit::RedisServer;
use trunkline_testkit::conformance::process::redis;

trunkline_testkit::conformance!(redis(RedisServer::start()));
