//! Who talks: the person at the terminal, or, where there is none, made-up people who say something every second.

use std::io::IsTerminal;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::channel::Channel;
use super::{DemoError, SEED};
use crate::output;

/// Pause between two made-up messages.
const PAUSE: Duration = Duration::from_secs(1);

const CITIES: [&str; 8] = ["Oslo", "Lisbon", "Nairobi", "Kyoto", "Quito", "New York", "Tbilisi", "Perth"];
const PEOPLE: [&str; 5] = ["ada", "grace", "linus", "margaret", "ken"];

/// What made-up people talk about.
#[derive(Clone, Copy)]
enum Topic {
    Weather,
    Arithmetic,
    Greeting,
}

/// In this order, again and again: within seconds everything has been seen, a tool that fails included.
const TOPICS: [Topic; 5] =
    [Topic::Weather, Topic::Arithmetic, Topic::Weather, Topic::Weather, Topic::Greeting];

/// Talks on both channels until enough was said, then waits: the answers are still to come.
pub(super) async fn talk(web: Channel, slack: Channel, enough: Option<u64>) -> Result<(), DemoError> {
    let mut people = People { random: fastrand::Rng::with_seed(SEED), web, slack, made_up: 0 };
    if std::io::stdin().is_terminal() {
        output::note(
            "say something, for example: what is the weather in Oslo?  or: what is 6 * 7?  (Ctrl-D ends talking)",
        );
        people.made_up().await?;
        people.typed(enough.map(|enough| enough.saturating_sub(1))).await?;
    } else {
        let mut every = tokio::time::interval(PAUSE);
        let mut said = 0;
        while enough.is_none_or(|enough| said < enough) {
            every.tick().await;
            said += u64::from(people.made_up().await?);
        }
    }
    std::future::pending().await
}

struct People {
    random: fastrand::Rng,
    web: Channel,
    slack: Channel,
    /// Messages made up so far: the channels take turns.
    made_up: usize,
}

impl People {
    /// Somebody says something on one of the channels; whether it was passed on.
    async fn made_up(&mut self) -> Result<bool, DemoError> {
        let sender = PEOPLE[self.random.usize(..PEOPLE.len())];
        let text = match TOPICS[self.made_up % TOPICS.len()] {
            Topic::Weather => {
                format!("What is the weather in {}?", CITIES[self.random.usize(..CITIES.len())])
            }
            Topic::Arithmetic => format!("What is {} * {}?", self.random.u8(2..=99), self.random.u8(2..=99)),
            Topic::Greeting => "Hello there".to_owned(),
        };
        let conversation = self.new_conversation();
        let channel = [&self.web, &self.slack][self.made_up % 2];
        self.made_up += 1;
        tracing::debug!(channel = channel.name(), sender, "somebody speaks");
        channel.say(sender, &text, &conversation).await
    }

    /// Every line that is typed is said on the web channel.
    async fn typed(&mut self, enough: Option<u64>) -> Result<(), DemoError> {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let mut said = 0;
        while enough.is_none_or(|enough| said < enough) {
            let Some(line) = lines.next_line().await? else {
                return Ok(());
            };
            let text = line.trim();
            if text.is_empty() {
                continue;
            }
            let conversation = self.new_conversation();
            said += u64::from(self.web.say("you", text, &conversation).await?);
        }
        Ok(())
    }

    /// Short enough to be read in every line; a platform would take a UUID.
    fn new_conversation(&mut self) -> String {
        format!("c-{:04x}", self.random.u16(..))
    }
}
