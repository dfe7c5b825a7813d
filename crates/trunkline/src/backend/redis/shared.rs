//! What all parts of one connected backend share: the link, the routes, names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use redis::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use super::entry::{array, entry_id, list, number, parse_id, text};
use super::link::{Failure, Link};
use super::options::RedisOptions;
use super::routes::{Home, Routes, StreamRecord, control_key, routes_key};
use super::scripts::{CHANGE_ROUTES, ROUTES, TIPS};
use crate::backend::StreamConfig;

/// How often something is tried again because the routes changed meanwhile. Each time somebody else has changed them,
/// so the limit only ends what could never end.
pub(super) const STALE_RETRIES: usize = 20;

/// How long after a server that had no data was used first those who know it from before may not have listed themselves
/// again. They are told at once; it is the time that they may take for it.
const NEW_ERA: Duration = Duration::from_millis(500);

/// See the module's text.
pub(super) struct Shared {
    pub(super) link: Arc<Link>,
    pub(super) options: RedisOptions,
    /// A token that no other process has: names inboxes, and members of groups.
    pub(super) process: String,
    /// The copy of the routes.
    routes: watch::Sender<Arc<Routes>>,
    /// Streams that this process ensured: what is made again on a server that was emptied. Held for one map operation.
    pub(super) ensured: Mutex<BTreeMap<String, StreamConfig>>,
}

/// Where a stream stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tip {
    /// Id of the newest entry there ever was.
    pub(super) last: (u64, u64),
    /// Id of the newest entry kept.
    pub(super) newest: Option<(u64, u64)>,
    /// How many messages there ever were.
    pub(super) index: u64,
}

impl Shared {
    pub(super) fn new(link: Arc<Link>, options: RedisOptions) -> Self {
        let process = format!("{:012x}{:08x}", fastrand::u64(..1 << 48), std::process::id());
        let routes = Routes::new(&options.prefix, (0, 0), []);
        Self {
            link,
            options,
            process,
            routes: watch::Sender::new(Arc::new(routes)),
            ensured: Mutex::default(),
        }
    }

    pub(super) fn routes(&self) -> Arc<Routes> {
        self.routes.borrow().clone()
    }

    /// Tells when the routes change.
    pub(super) fn routes_watch(&self) -> watch::Receiver<Arc<Routes>> {
        self.routes.subscribe()
    }

    /// Key of the hash in which the configured streams are entered.
    pub(super) fn routes_key(&self) -> String {
        routes_key(&self.options.prefix)
    }

    /// Key of the stream that tells of changes of the routes.
    pub(super) fn control_key(&self) -> String {
        control_key(&self.options.prefix)
    }

    /// The keys of a script about a stream: the stream's, and in a cluster those beside it, too. While a slot is on its
    /// way to another node, only a script that names all its keys is refused before it has done anything.
    pub(super) fn keys_of(&self, home: &Home, beside: &[&str], consumer: &[&str], name: &str) -> Vec<String> {
        let mut keys = vec![home.key.clone()];
        if self.link.topology.redirects() {
            keys.extend(beside.iter().map(|what| home.beside(what)));
            keys.extend(consumer.iter().map(|what| home.of_consumer(what, name)));
        }
        keys
    }

    /// Copies the routes from the server. Where the server has lost them, the streams of this process are entered again
    /// first: until they are, nobody here acts by routes without them.
    pub(super) async fn refresh(&self) -> Result<Arc<Routes>, Failure> {
        let known = self.routes().version;
        let (mut routes, forgotten) = self.reload().await?;
        if forgotten {
            self.restore().await;
            routes = Arc::new(self.load().await?);
            if routes.version < known {
                routes = self.raise_above(known).await?;
            }
            self.put(routes.clone());
        }
        Ok(routes)
    }

    /// Copies the routes from the server, unless it has lost changes since: then it says so, and the copy stays as it
    /// was.
    pub(super) async fn reload(&self) -> Result<(Arc<Routes>, bool), Failure> {
        let before = self.routes();
        let routes = Arc::new(self.load().await?);
        // Versions only grow. What is older than what was known before it was asked for has been lost, as by a failover
        // to a replica that was behind.
        let forgotten = before.era != 0 && (before.era != routes.era || routes.version < before.version);
        if forgotten {
            self.link.settle();
        }
        // Another copy may have been taken later and put in place first.
        if !forgotten && routes.version >= self.routes().version {
            self.put(routes.clone());
        }
        Ok((routes, forgotten))
    }

    fn put(&self, routes: Arc<Routes>) {
        self.link.need(routes.keys());
        self.routes.send_if_modified(|current| {
            let changed = (current.version, current.era) != (routes.version, routes.era);
            *current = routes;
            changed
        });
    }

    /// Has the version of the routes be above one that is known somewhere and that the routes themselves have lost.
    pub(super) async fn raise_above(&self, version: u64) -> Result<Arc<Routes>, Failure> {
        tracing::warn!(
            server = self.link.server,
            "the server has lost changes of the streams; what is entered now counts"
        );
        let (routes_key, control_key) = (self.routes_key(), self.control_key());
        let raising = self.link.run_script(&CHANGE_ROUTES, &[&routes_key, &control_key], |command| {
            command.arg("raise").arg(version);
        });
        raising.await?;
        let routes = Arc::new(self.load().await?);
        self.put(routes.clone());
        Ok(routes)
    }

    /// Version of the routes on the server, 0 where there are none.
    pub(super) async fn version(&self) -> Result<u64, Failure> {
        let key = self.routes_key();
        number(&self.link.query(&key, redis::cmd("HGET").arg(&key).arg("version")).await?)
    }

    async fn load(&self) -> Result<Routes, Failure> {
        let keys = [self.routes_key(), self.control_key()];
        let asked = Instant::now();
        let answer = self.link.run_script(&ROUTES, &[&keys[0], &keys[1]], |_| {}).await?;
        let (mut version, mut era, mut now, mut configs, mut pending) = (0, 0, 0, Vec::new(), None);
        let mut fields = list(answer)?.into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            let name = text(&name)?;
            if name == "version" {
                version = number(&value)?;
            } else if name == "era" {
                era = number(&value)?;
            } else if name == "now" {
                now = number(&value)?;
            } else if let Some(name) = name.strip_prefix("p:") {
                let record = serde_json::from_str::<StreamRecord>(&text(&value)?).ok();
                pending = Some((name.to_owned(), record.and_then(|record| record.config(name))));
            } else if let Some(name) = name.strip_prefix("s:") {
                let record = serde_json::from_str::<StreamRecord>(&text(&value)?).ok();
                match record.and_then(|record| record.config(name)) {
                    Some(config) => configs.push(config),
                    None => tracing::warn!(
                        stream = name,
                        "this version of the bus cannot read the stream's entry"
                    ),
                }
            }
        }
        let age = Duration::from_millis(now.saturating_sub(era));
        if age < NEW_ERA {
            // The server is new, or somebody has emptied it: others may be about to list themselves again.
            self.link.settle_until(asked + (NEW_ERA - age));
        }
        let mut routes = Routes::new(&self.options.prefix, (version, era), configs);
        routes.pending = pending;
        Ok(routes)
    }

    /// The streams chosen by the routes, and where each of them stands, with the routes being those on the server. A
    /// change that comes between the check and the look is told on the control stream.
    pub(super) async fn tips(
        &self,
        choose: impl Fn(&Routes) -> Vec<Arc<Home>>,
    ) -> Result<Vec<(Arc<Home>, Tip)>, Failure> {
        for _ in 0..STALE_RETRIES {
            let routes = self.routes();
            let homes = choose(&routes);
            let (version, tips) = tokio::join!(self.version(), self.tips_of(&homes));
            if version? == routes.version {
                return Ok(homes.into_iter().zip(tips?).collect());
            }
            self.refresh().await?;
        }
        Err(Failure::Unexpected("the routes keep changing".to_owned()))
    }

    /// Id of the newest change of the routes.
    pub(super) async fn control_tip(&self) -> Result<(u64, u64), Failure> {
        Ok(self.tip_of(&self.control_key()).await?.last)
    }

    /// Where streams stand.
    pub(super) async fn tips_of(&self, homes: &[Arc<Home>]) -> Result<Vec<Tip>, Failure> {
        try_join_all(homes.iter().map(|home| self.tip_of(&home.key))).await
    }

    async fn tip_of(&self, key: &str) -> Result<Tip, Failure> {
        tip(self.link.run_script(&TIPS, &[key, &format!("{key}:added")], |_| {}).await?)
    }
}

fn tip(value: Value) -> Result<Tip, Failure> {
    let [last, newest, index] = array::<3>(value)?;
    Ok(Tip { last: entry_id(&last)?, newest: parse_id(&text(&newest)?), index: number(&index)? })
}

/// Whether the routes on the server are others than those that were used.
pub(super) fn is_stale(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(error) if error.code() == "STALE")
}
