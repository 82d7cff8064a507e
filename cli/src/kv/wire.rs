//! What clients and servers say to each other over TCP: JSON, one object a line, each request answered by one line (but `watch`, by as
//! many as there are). Any language can speak it, and so can a person with `nc`. What is too long or isn't understood is answered, too.

use std::io::{self, BufRead, Read as _};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::store::Versioned;

/// The longest key, in bytes.
pub(super) const KEY_LEN: usize = 512;

/// The longest value, in bytes: well below half of a shard's ring.
pub(super) const VALUE_LEN: usize = 64 << 10;

/// The longest line: six bytes for one is the most that JSON makes of it.
const LINE_LEN: usize = 6 * (KEY_LEN + VALUE_LEN) + 1024;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Request {
    Put {
        key: String,
        value: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    Get {
        key: String,
        #[serde(default)]
        local: bool,
    },
    Delete {
        key: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_version: Option<u64>,
    },
    Watch {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub(super) enum Answer {
    /// It is put or deleted: that version.
    Done { version: u64 },
    /// The key's value.
    Value { value: String, version: u64 },
    /// There is no such key.
    Absent,
    /// There is another version; 0 is none.
    Conflict { version: u64 },
    /// This server has not the key's shard; these have it, as far as it knows.
    Elsewhere { shard: usize, shards: usize, servers: Vec<SocketAddr>, lost: bool },
    /// The request makes no sense.
    Refused { error: String },
    /// It can't be answered here. `unknown`: it may have been done all the same.
    Failed { error: String, unknown: bool },
    /// From here on changes are told, of these of so many shards; `now` is what there is of the key, if one was named.
    Watching { now: Option<Versioned>, here: Vec<usize>, shards: usize },
    /// A key has this value now.
    Change { key: String, value: Option<String>, version: u64 },
    /// The server got that shard's state whole: what changed before isn't told one by one.
    Restored { shard: usize },
}

impl Request {
    /// The key that it is about.
    pub(super) fn key(&self) -> Option<&str> {
        match self {
            Self::Put { key, .. } | Self::Get { key, .. } | Self::Delete { key, .. } => Some(key),
            Self::Watch { key } => key.as_deref(),
        }
    }

    /// Whether it changes something.
    pub(super) fn changes(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Delete { .. })
    }

    /// What is wrong with it, if anything.
    pub(super) fn fault(&self) -> Option<String> {
        let key = self.key().filter(|key| key.is_empty() || key.len() > KEY_LEN);
        if let Some(key) = key {
            return Some(format!("a key of {} bytes; take 1 to {KEY_LEN}", key.len()));
        }
        match self {
            Self::Put { value, .. } if value.len() > VALUE_LEN => {
                Some(format!("a value of {} bytes; take at most {VALUE_LEN}", value.len()))
            }
            _ => None,
        }
    }
}

/// In which of `shards` a key is: the same everywhere and for ever.
pub(super) fn shard_of(key: &str, shards: usize) -> usize {
    let mut word = [0; 8];
    word.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..8]);
    let shards = u64::try_from(shards.max(1)).unwrap_or(u64::MAX);
    usize::try_from(u64::from_le_bytes(word) % shards).unwrap_or(0) // less than `shards`
}

/// The next line without its end; `None` when no more come.
///
/// # Errors
/// It can't be read, or is too long to be one of ours ([`io::ErrorKind::InvalidData`]).
pub(super) fn read_line(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let most = u64::try_from(LINE_LEN + 1).unwrap_or(u64::MAX);
    from.take(most).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() >= LINE_LEN => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a line of more than {LINE_LEN} bytes is no request"),
        )),
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// As a line.
///
/// # Errors
/// None that can happen: all of these have a form in JSON.
pub(super) fn line(of: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(of)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_in_their_shards() {
        // Should these change, stores of two releases would look for keys in different places.
        let shards: Vec<_> = ["a", "b", "colour", "\u{1f600}"].iter().map(|key| shard_of(key, 3)).collect();
        assert!(shards.iter().all(|shard| *shard < 3));
        let counts = (0..3000).map(|n| shard_of(&format!("key-{n}"), 3)).fold([0; 3], |mut counts, shard| {
            counts[shard] += 1;
            counts
        });
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn requests_are_lines_that_people_can_write() {
        let put: Request = serde_json::from_str(r#"{"do":"put","key":"a","value":"b"}"#).unwrap();
        assert_eq!(put, Request::Put { key: "a".to_owned(), value: "b".to_owned(), if_version: None });
        assert_eq!(line(&put).unwrap(), b"{\"do\":\"put\",\"key\":\"a\",\"value\":\"b\"}\n");
        for wrong in ["", "{}", r#"{"do":"drop","key":"a"}"#, r#"{"do":"get","key":"a","locl":true}"#, "[1]"]
        {
            assert!(serde_json::from_str::<Request>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lines_are_bounded() {
        let mut two = &b"one\ntwo\nrest"[..];
        assert_eq!(read_line(&mut two).unwrap(), Some(b"one".to_vec()));
        assert_eq!(read_line(&mut two).unwrap(), Some(b"two".to_vec()));
        assert_eq!(read_line(&mut two).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read_line(&mut &b""[..]).unwrap(), None);
        let endless = vec![b'x'; LINE_LEN * 2];
        assert_eq!(read_line(&mut &endless[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let longest = Request::Put {
            key: "\u{1}".repeat(KEY_LEN),
            value: "\u{1}".repeat(VALUE_LEN),
            if_version: Some(u64::MAX),
        };
        assert_eq!(longest.fault(), None);
        assert!(read_line(&mut &line(&longest).unwrap()[..]).unwrap().is_some());
    }

    #[test]
    fn what_is_too_long_is_said() {
        let get = |key: String| Request::Get { key, local: false };
        assert!(get(String::new()).fault().unwrap().contains("1 to 512"));
        assert!(get("x".repeat(KEY_LEN + 1)).fault().unwrap().contains("513 bytes"));
        assert_eq!(get("x".repeat(KEY_LEN)).fault(), None);
    }
}
