//! What all parts of one connected backend share: the link, the routes, names.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use redis::Value;

use super::entry::{array, entry_id, list, number, parse_id, text};
use super::link::{Failure, Link};
use super::options::RedisOptions;
use super::routes::{Home, Routes, StreamRecord};
use super::scripts::TIPS;
use crate::backend::StreamConfig;

/// How often something is tried again because the routes changed meanwhile. Each time somebody else has changed them,
/// so the limit only ends what could never end.
pub(super) const STALE_RETRIES: usize = 20;

/// See the module's text.
pub(super) struct Shared {
    pub(super) link: Arc<Link>,
    pub(super) options: RedisOptions,
    /// A token that no other process has: names inboxes, and members of groups.
    pub(super) process: String,
    /// The copy of the routes; held to copy or replace it.
    routes: RwLock<Arc<Routes>>,
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
        Self { link, options, process, routes: RwLock::new(Arc::new(routes)), ensured: Mutex::default() }
    }

    pub(super) fn routes(&self) -> Arc<Routes> {
        self.routes.read().clone()
    }

    /// Key of the hash in which the configured streams are entered.
    pub(super) fn routes_key(&self) -> String {
        format!("{}:routes", self.options.prefix)
    }

    /// Key of the stream that tells of changes of the routes.
    pub(super) fn control_key(&self) -> String {
        format!("{}:control", self.options.prefix)
    }

    /// Copies the routes from the server. Where the server has lost them, the streams of this process are entered again
    /// first: until they are, nobody here acts by routes without them.
    pub(super) async fn refresh(&self) -> Result<Arc<Routes>, Failure> {
        let (routes, forgotten) = self.reload().await?;
        if !forgotten {
            return Ok(routes);
        }
        self.restore().await;
        let routes = Arc::new(self.load().await?);
        *self.routes.write() = routes.clone();
        Ok(routes)
    }

    /// Copies the routes from the server, unless it has lost its data since: then it says so, and the copy stays as it
    /// was.
    pub(super) async fn reload(&self) -> Result<(Arc<Routes>, bool), Failure> {
        let routes = Arc::new(self.load().await?);
        let mut current = self.routes.write();
        let forgotten = current.era != 0 && current.era != routes.era;
        // Another copy may have been taken later and put in place first.
        if !forgotten && routes.version >= current.version {
            *current = routes.clone();
        }
        Ok((routes, forgotten))
    }

    async fn load(&self) -> Result<Routes, Failure> {
        let answer = self.link.query(redis::cmd("HGETALL").arg(self.routes_key())).await?;
        let (mut version, mut era, mut configs) = (0, 0, Vec::new());
        let mut fields = list(answer)?.into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            let name = text(&name)?;
            if name == "version" {
                version = number(&value)?;
            } else if name == "era" {
                era = number(&value)?;
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
        Ok(Routes::new(&self.options.prefix, (version, era), configs))
    }

    /// The streams chosen by the routes, and where each of them stands, in one step with the check that the routes are
    /// those on the server.
    pub(super) async fn tips(
        &self,
        choose: impl Fn(&Routes) -> Vec<Arc<Home>>,
    ) -> Result<Vec<(Arc<Home>, Tip)>, Failure> {
        let mut last = Failure::Unexpected("the routes keep changing".to_owned());
        for _ in 0..STALE_RETRIES {
            let routes = self.routes();
            let homes = choose(&routes);
            match self.tips_of(&homes, Some(routes.version)).await {
                Ok(tips) => return Ok(homes.into_iter().zip(tips).collect()),
                Err(failure) if is_stale(&failure) => {
                    last = failure;
                    self.refresh().await?;
                }
                Err(failure) => return Err(failure),
            }
        }
        Err(last)
    }

    /// Id of the newest change of the routes.
    pub(super) async fn control_tip(&self) -> Result<(u64, u64), Failure> {
        let (routes_key, control_key) = (self.routes_key(), self.control_key());
        let asking = self.link.run_script(&TIPS, &[&routes_key, &control_key], |command| {
            command.arg("");
        });
        let [tip_of_control] = array::<1>(asking.await?)?;
        Ok(tip(tip_of_control)?.last)
    }

    /// Where streams stand.
    pub(super) async fn tips_of(
        &self,
        homes: &[Arc<Home>],
        version: Option<u64>,
    ) -> Result<Vec<Tip>, Failure> {
        let routes_key = self.routes_key();
        let mut keys = vec![routes_key.as_str()];
        keys.extend(homes.iter().map(|home| home.key.as_str()));
        let version = version.map_or_else(String::new, |version| version.to_string());
        let answer = self.link.run_script(&TIPS, &keys, |command| {
            command.arg(&version);
        });
        list(answer.await?)?.into_iter().map(tip).collect()
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
