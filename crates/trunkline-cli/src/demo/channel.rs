//! A channel: where people are. What they say goes to the gateway; what comes back is shown to them.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline::topics::payload::{ChannelInbound, ChannelOutbound};
use trunkline::{Bus, Event, Topic};

use super::DemoError;

/// A channel such as a web page or a chat.
pub(super) struct Channel {
    bus: Bus,
    name: &'static str,
    inbound: Topic<ChannelInbound>,
}

impl Channel {
    /// Starts the channel.
    pub(super) async fn start(
        bus: Bus,
        name: &'static str,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, DemoError> {
        let topics = bus.topics().channel(name)?;
        let mut outbound = bus.subscribe(topics.outbound().pattern()).await?;
        let stop = stop.clone();
        tasks.spawn(async move {
            while let Some(Some(event)) = stop.run_until_cancelled(outbound.next()).await {
                if let Event::Message(received) = event {
                    deliver(name, received.decode());
                }
            }
        });
        Ok(Self { bus, name, inbound: topics.inbound() })
    }

    /// Name of the channel.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Passes on what a person says, as the first message of a conversation. `false` where the bus is away for now: what was
    /// said then is lost, and the person may say it again.
    pub(super) async fn say(&self, sender: &str, text: &str, conversation: &str) -> Result<bool, DemoError> {
        let message =
            ChannelInbound { sender: sender.to_owned(), text: text.to_owned(), ..ChannelInbound::default() };
        match self.bus.publish(self.inbound.clone(), &message).conversation(conversation).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_retryable() => {
                tracing::warn!(channel = self.name, %error, "nobody hears what was said");
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Hands an answer to its person. A real channel would send it on; here the watcher prints it anyway.
fn deliver(channel: &str, message: Result<ChannelOutbound, trunkline::DecodeError>) {
    match message {
        Ok(message) => tracing::debug!(channel, recipient = %message.recipient, "delivered"),
        Err(error) => tracing::warn!(channel, %error, "an answer cannot be shown"),
    }
}
