//! Changes of the routes: streams that are entered, altered and removed.
//!
//! In a cluster the routes and the streams are on several servers, so a change is several steps, and each leaves behind
//! what is right if it is the last: (1) the change is announced, and who answers requests lists itself also where they
//! will go; those that are listed already are copied; (2) it counts, for everybody who looks and with its tip for who
//! follows; (3) nobody publishes by older routes any more where messages would go astray.

use std::sync::Arc;

use futures_util::future::try_join_all;
use trunkline_core::Pattern;

use super::entry::{array, list, number, print_id, text};
use super::link::Failure;
use super::presence;
use super::routes::{Home, Routes, StreamRecord};
use super::scripts::{CHANGE_ROUTES, DROP, LISTED, RAISE};
use super::shared::{STALE_RETRIES, Shared, is_stale};
use crate::backend::{StreamConfig, StreamError};

impl Shared {
    /// Enters a stream, or its changes.
    pub(super) async fn enter(&self, config: &StreamConfig) -> Result<Arc<Home>, StreamError> {
        let failed = |failure| self.link.stream_error(failure);
        let mut last = Failure::Unexpected("the streams keep changing".to_owned());
        for _ in 0..STALE_RETRIES {
            let (routes, _) = self.reload().await.map_err(failed)?;
            check_overlap(&routes, config)?;
            if let Some(home) = routes.streams.get(&config.name)
                && home.config.as_ref() == Some(config)
            {
                // Whoever entered it may not have come to an end.
                let concerned = routes.concerned(&config.name, &config.subjects);
                self.raise(concerned.into_iter().chain([home.clone()]), routes.version)
                    .await
                    .map_err(failed)?;
                return Ok(home.clone());
            }
            match self.change_routes(&routes, &config.name, Some(config)).await {
                Ok(()) => {}
                Err(failure) if is_stale(&failure) => last = failure,
                Err(failure) => return Err(failed(failure)),
            }
        }
        Err(failed(last))
    }

    /// Changes what the routes say of one stream, in the steps of the module's text.
    pub(super) async fn change_routes(
        &self,
        routes: &Routes,
        name: &str,
        config: Option<&StreamConfig>,
    ) -> Result<(), Failure> {
        let unexpected = |error: serde_json::Error| Failure::Unexpected(error.to_string());
        let record = match config {
            Some(config) => serde_json::to_string(&StreamRecord::of(config)).map_err(unexpected)?,
            None => String::new(),
        };
        let next = routes.after(name, config.cloned());
        let before = routes.streams.get(name);
        let Some(home) = next.streams.get(name).or(before).cloned() else { return Ok(()) };
        let configs = before.and_then(|home| home.config.as_ref()).into_iter().chain(config);
        let subjects: Vec<Pattern> = configs.flat_map(|config| config.subjects.iter().cloned()).collect();
        let mut concerned = routes.concerned(name, &subjects);
        concerned.extend(before.cloned());

        let (routes_key, control_key) = (self.routes_key(), self.control_key());
        let record = record.as_str();
        let change = |what: &'static str, looked_at: u64, tip: (u64, u64), index: u64| {
            self.link.run_script(&CHANGE_ROUTES, &[&routes_key, &control_key], move |command| {
                command.arg(what).arg(looked_at).arg(name).arg(record).arg(print_id(tip)).arg(index);
            })
        };
        let prepared = number(&change("prepare", routes.version, (0, 0), 0).await?)?;
        self.copy_responders(routes, &next, &concerned, &subjects).await?;
        let [tip] = self.tips_of(std::slice::from_ref(&home)).await?[..] else { return Ok(()) };
        let version = number(&change("commit", prepared, tip.last, tip.index).await?)?;
        match config {
            Some(_) => {
                concerned.push(home);
                self.raise(concerned, version).await?;
            }
            None => self.drop_stream(&home, version).await?,
        }
        self.reload().await.map(|_| ())
    }

    async fn raise(&self, homes: impl IntoIterator<Item = Arc<Home>>, version: u64) -> Result<(), Failure> {
        let raising = homes.into_iter().map(|home| {
            self.link.run_script(&RAISE, &[&home.version_key()], |command| {
                command.arg(version);
            })
        });
        try_join_all(raising).await.map(|_| ())
    }

    /// Takes away what is left of a stream that is not in the routes.
    pub(super) async fn drop_stream(&self, home: &Home, version: u64) -> Result<(), Failure> {
        let dropping = self.link.run_script(&DROP, &[&home.key, &home.version_key()], |command| {
            command.arg(version);
        });
        dropping.await.map(|_| ())
    }

    /// Lists those who answer where requests will go after a change.
    async fn copy_responders(
        &self,
        from: &Routes,
        to: &Routes,
        homes: &[Arc<Home>],
        subjects: &[Pattern],
    ) -> Result<(), Failure> {
        let asking = homes.iter().map(|home| {
            let keys = [&home.key, &home.responders_key(None), &home.beside(presence::LITERAL)];
            self.link.run_script(&LISTED, &keys.map(String::as_str), |command| {
                subjects.iter().for_each(|pattern| {
                    command.arg(pattern.as_str());
                });
            })
        });
        let mut entries = Vec::new();
        for found in try_join_all(asking).await? {
            for found in list(found)? {
                let [pattern, entry, ms] = array::<3>(found)?;
                let Ok(pattern) = Pattern::new(text(&pattern)?) else { continue };
                let known = from.listing(&pattern);
                let added = to.listing(&pattern);
                for home in added.iter().filter(|home| known.iter().all(|known| known.key != home.key)) {
                    entries.extend(presence::entries_of(home, &pattern, &text(&entry)?, number(&ms)?));
                }
            }
        }
        presence::enter(&self.link, entries).await
    }

    /// Enters again the streams that this process had made, on a server that has forgotten them.
    pub(super) async fn restore(&self) {
        let ensured: Vec<StreamConfig> = self.ensured.lock().values().cloned().collect();
        tracing::warn!(
            server = self.link.server,
            streams = ensured.len(),
            "the server has lost its data; streams and consumers are made again, messages are gone"
        );
        for config in ensured {
            if let Err(error) = self.enter(&config).await {
                tracing::warn!(stream = config.name, %error, "a stream cannot be made again");
            }
        }
    }
}

fn check_overlap(routes: &Routes, config: &StreamConfig) -> Result<(), StreamError> {
    for other in routes.streams.values().filter(|home| home.name != config.name) {
        for theirs in other.config.iter().flat_map(|config| &config.subjects) {
            if let Some(mine) = config.subjects.iter().find(|mine| mine.overlaps(theirs)) {
                return Err(StreamError::Overlap {
                    stream: config.name.clone(),
                    pattern: mine.clone(),
                    other: other.name.clone(),
                    other_pattern: theirs.clone(),
                });
            }
        }
    }
    Ok(())
}
