//! The cluster's shared key: who knows it belongs. It never shows in a log.

use std::fmt;
use std::path::Path;

/// The fewest bytes of a key that are worth calling one.
const LEAST: usize = 16;
/// Nobody's key is longer; more is a wrong file.
const MOST: usize = 4096;

/// A secret that all nodes of a cluster share. With one, control links are authenticated before anything else is
/// said on them (S3).
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKey(Vec<u8>);

/// Something is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file can't be read.
    #[error("can't read the key file {file}: {cause}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// Too short to be safe, or too long to be meant.
    #[error(
        "a shared key of {0} bytes: take {LEAST} to {MOST}, for instance the output of `head -c 32 /dev/urandom | base64`"
    )]
    Length(usize),
    /// Others on the machine can read it.
    #[error("others may read the key file {file} (mode {mode:o}): do `chmod 600 {file}`")]
    Exposed {
        /// The file.
        file: String,
        /// Its permissions.
        mode: u32,
    },
}

impl SharedKey {
    /// A key from its bytes.
    ///
    /// # Errors
    /// It is shorter than 16 bytes or longer than 4,096.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, KeyError> {
        let bytes = bytes.into();
        if (LEAST..=MOST).contains(&bytes.len()) {
            Ok(Self(bytes))
        } else {
            Err(KeyError::Length(bytes.len()))
        }
    }

    /// The key in a file; white space around it doesn't count. Blocks to read it.
    ///
    /// # Errors
    /// It can't be read, anyone but its owner can, or it is no key.
    pub fn from_file(file: &Path) -> Result<Self, KeyError> {
        use std::io::Read;
        use std::os::unix::fs::PermissionsExt;
        let read = |cause| KeyError::Read { file: file.display().to_string(), cause };
        let opened = std::fs::File::open(file).map_err(read)?;
        let mode = opened.metadata().map_err(read)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { file: file.display().to_string(), mode });
        }
        let mut bytes = Vec::new();
        opened.take(MOST as u64 + 2).read_to_end(&mut bytes).map_err(read)?;
        Self::new(bytes.trim_ascii())
    }

    /// The secret itself.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(..)")
    }
}
