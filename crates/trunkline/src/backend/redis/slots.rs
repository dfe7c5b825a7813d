//! Slots: which slot a key is in, who serves it, and what a node says that does not.
//!
//! Every key belongs to one of 16384 slots, by what stands between its first braces. One server alone serves all of
//! them; in a cluster each node serves some. See the Redis cluster specification, "Key distribution model" and "MOVED
//! and ASK redirections".

use std::collections::BTreeSet;
use std::fmt;

use redis::{ServerError, Value};

use super::entry::{array, list, number, text, unexpected};
use super::link::Failure;

/// How many slots there are.
const SLOTS: u16 = 16_384;

/// The slot of a key.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    crc16(tag.filter(|tag| !tag.is_empty()).unwrap_or(key).as_bytes()) % SLOTS
}

/// CRC-16/XMODEM, as the specification asks for.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let mut crc = crc ^ u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
        }
        crc
    })
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Address {
    /// A name or an IP address, one of IPv6 without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    pub(super) fn new(host: &str, port: u16) -> Self {
        // The brackets of an IPv6 address belong to a URL, not to the address.
        Self { host: host.trim_start_matches('[').trim_end_matches(']').to_owned(), port }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Who serves which slots: first and last of each range, in order, without overlaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SlotMap(Vec<(u16, u16, Address)>);

impl SlotMap {
    /// One server that serves them all.
    pub(super) fn whole(address: Address) -> Self {
        Self(vec![(0, SLOTS - 1, address)])
    }

    /// Reads the answer of `CLUSTER SLOTS`, as the node at `asked` gave it.
    pub(super) fn read(answer: Value, asked: &Address) -> Result<Self, Failure> {
        let mut ranges = Vec::new();
        for range in list(answer)? {
            let mut parts = list(range)?.into_iter();
            let (Some(first), Some(last), Some(master)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(Failure::Unexpected("a range of slots without a node".to_owned()));
            };
            let slot = |value: &Value| {
                u16::try_from(number(value)?)
                    .ok()
                    .filter(|slot| *slot < SLOTS)
                    .ok_or_else(|| unexpected(value))
            };
            let master = list(master)?;
            let [host, port, ..] = master.as_slice() else {
                return Err(Failure::Unexpected("a node without an address".to_owned()));
            };
            // A node that does not know its own address leaves it out: it is where the question was sent to.
            let host = match host {
                Value::Nil => asked.host.clone(),
                host => Some(text(host)?)
                    .filter(|host| !matches!(host.as_str(), "" | "?"))
                    .unwrap_or_else(|| asked.host.clone()),
            };
            let port = u16::try_from(number(port)?).map_err(|_| unexpected(port))?;
            ranges.push((slot(&first)?, slot(&last)?, Address::new(&host, port)));
        }
        ranges.sort_unstable();
        Ok(Self(ranges))
    }

    /// Who serves a slot.
    pub(super) fn owner(&self, slot: u16) -> Option<&Address> {
        let after = self.0.partition_point(|(first, ..)| *first <= slot);
        let (_, last, address) = self.0.get(after.checked_sub(1)?)?;
        (slot <= *last).then_some(address)
    }

    /// All who serve any slot, each once.
    pub(super) fn servers(&self) -> BTreeSet<Address> {
        self.0.iter().map(|(.., address)| address.clone()).collect()
    }

    /// Who serves these slots, each once.
    pub(super) fn owners(&self, slots: &BTreeSet<u16>) -> BTreeSet<Address> {
        slots.iter().filter_map(|slot| self.owner(*slot)).cloned().collect()
    }
}

/// Why a node has not carried a command out, and what to do instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Redirect {
    /// The slot is served by this node.
    Moved(Address),
    /// The slot is on its way to this node, and the key may be there already: ask it, this once.
    Ask(Address),
    /// Later: some keys of the command are on their way, or the slot is served by nobody now.
    Later,
}

/// What the node at `from` says with this error; `None` when the error is about the command itself.
pub(super) fn redirect(error: &ServerError, from: &Address) -> Option<Redirect> {
    let address = || {
        let (_, address) = error.details()?.split_once(' ')?;
        let (host, port) = address.trim().rsplit_once(':')?;
        let host = if host.is_empty() { &from.host } else { host };
        Some(Address::new(host, port.parse().ok()?))
    };
    match error.code() {
        "MOVED" => Some(address().map_or(Redirect::Later, Redirect::Moved)),
        "ASK" => Some(address().map_or(Redirect::Later, Redirect::Ask)),
        "TRYAGAIN" | "CLUSTERDOWN" => Some(Redirect::Later),
        _ => None,
    }
}

/// The address of a master as a sentinel knows it, and the epoch of that knowledge: the highest one is right. The answer
/// of `SENTINEL MASTER` is a list of names and values.
pub(super) fn read_master(answer: Value) -> Result<(u64, Address), Failure> {
    let (mut host, mut port, mut epoch) = (None, None, 0);
    for pair in list(answer)?.chunks_exact(2) {
        let [name, value] = array::<2>(Value::Array(pair.to_vec()))?;
        match text(&name)?.as_str() {
            "ip" => host = Some(text(&value)?),
            "port" => port = u16::try_from(number(&value)?).ok(),
            "config-epoch" => epoch = number(&value)?,
            _ => {}
        }
    }
    match (host, port) {
        (Some(host), Some(port)) => Ok((epoch, Address::new(&host, port))),
        _ => Err(Failure::Unexpected("a master without an address".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_one_tag_are_in_one_slot() {
        // The values of `CLUSTER KEYSLOT`.
        for (key, expected) in [
            ("123456789", 12739),
            ("foo", 12182),
            ("", 0),
            ("{foo}:bar", 12182),
            ("a{foo}b{c}", 12182),
            ("{}foo", 9500),
            ("foo{", 7673),
        ] {
            assert_eq!(slot(key), expected, "{key:?}");
        }
        assert_eq!(slot("p:{hot}"), slot("p:{hot}:consumer:{x}"));
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    #[test]
    fn slots_are_found_and_gaps_are_nobodys() {
        let node = |host: Value, port| Value::Array(vec![host, Value::Int(port), bulk("id")]);
        let range =
            |first, last, master| Value::Array(vec![Value::Int(first), Value::Int(last), master, Value::Nil]);
        let answer = Value::Array(vec![
            range(200, 16383, node(bulk("::1"), 7001)),
            range(0, 99, node(Value::Nil, 7000)),
        ]);
        let map = SlotMap::read(answer, &Address::new("here", 1)).unwrap();
        let owner = |slot| map.owner(slot).map(ToString::to_string);
        assert_eq!(owner(0).as_deref(), Some("here:7000"));
        assert_eq!(owner(99).as_deref(), Some("here:7000"));
        assert_eq!((owner(100), owner(199)), (None, None));
        assert_eq!(owner(200).as_deref(), Some("[::1]:7001"));
        assert_eq!(SlotMap::default().owner(0), None);
        let odd = Value::Array(vec![range(0, 16384, node(bulk("h"), 1))]);
        assert!(SlotMap::read(odd, &Address::new("here", 1)).is_err());
    }

    #[test]
    fn redirections_are_told_from_refusals() {
        let from = Address::new("here", 1);
        let error = |text: &str| {
            let (code, detail) = text.split_once(' ').unwrap();
            let line = format!("-{code} {detail}\r\n");
            match redis::parse_redis_value(line.as_bytes()).unwrap() {
                Value::ServerError(error) => error,
                other => panic!("{other:?}"),
            }
        };
        for (text, expected) in [
            ("MOVED 3999 127.0.0.1:6381", Some(Redirect::Moved(Address::new("127.0.0.1", 6381)))),
            ("ASK 3999 ::1:6381", Some(Redirect::Ask(Address::new("::1", 6381)))),
            ("MOVED 3999 :6381", Some(Redirect::Moved(Address::new("here", 6381)))),
            ("MOVED 3999 nonsense", Some(Redirect::Later)),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Some(Redirect::Later)),
            ("CLUSTERDOWN Hash slot not served", Some(Redirect::Later)),
            ("ERR MOVED 1 a:1", None),
        ] {
            assert_eq!(redirect(&error(text), &from), expected, "{text}");
        }
    }
}
