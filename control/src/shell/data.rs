//! What a node's durable groups are kept on, and why that can't be.

use std::path::{Path, PathBuf};

use consort_dataplane::log::{Disk, DiskError, OpenError};
use consort_dataplane::names::NodeId;

/// Makes the disk of a directory.
pub type MakeDisk = Box<dyn FnMut(&Path) -> Result<Box<dyn Disk>, DiskError> + Send>;

/// A node's data can't be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// There are durable groups, and nothing to keep them on.
    #[error("a durable group needs a data directory: set `data`, or another guarantee")]
    Missing,
    /// The disk refuses.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A log can't be opened.
    #[error("{}: {cause}", directory.display())]
    Log {
        /// Where it is.
        directory: PathBuf,
        /// Why.
        #[source]
        cause: OpenError,
    },
    /// What it says of views can't be read.
    #[error(
        "{}: the views in the file meta can't be read: another version of this program wrote them; use that one, or an empty directory",
        directory.display()
    )]
    Unreadable {
        /// The directory.
        directory: PathBuf,
    },
    /// It is another node's.
    #[error(
        "{} has the data of node {node} of cluster {cluster:?}: give this node the directory that is its own, or an empty one",
        directory.display()
    )]
    NotOurs {
        /// The directory.
        directory: PathBuf,
        /// Whose it is.
        cluster: String,
        /// As above.
        node: NodeId,
    },
}
