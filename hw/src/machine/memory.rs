//! How much memory a process may lock, and huge pages.

use serde::Serialize;

use super::files::Files;

/// `CAP_IPC_LOCK`, for which the limit does not hold.
const IPC_LOCK: u64 = 1 << 14;

/// Memory, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Memory {
    /// How much this process may lock, which registering memory with a device does.
    pub lockable: Option<Lockable>,
    /// The most that it may allow itself; `None` as well if there is no limit or it can't be read.
    pub lockable_hard: Option<u64>,
    /// Sizes of huge pages set aside. Consort does not use these, but asks for transparent ones.
    pub huge_pages: Vec<HugePages>,
    /// When memory gets huge pages by itself: always, madvise, never.
    pub transparent: Option<String>,
    /// The same of memory that is shared by a file, as the fabric `shm` has it: always, within_size, advise, never, deny, force.
    pub transparent_shared: Option<String>,
}

/// How much memory a process may lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Lockable {
    /// So many bytes.
    Bytes(u64),
    /// Any amount.
    Unlimited,
    /// Any amount, for this process has the right to pass over its limit.
    Privileged,
}

/// Huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct HugePages {
    /// Bytes of a page.
    pub bytes: u64,
    /// How many are set aside.
    pub total: u64,
    /// Of these, how many nobody uses.
    pub free: u64,
}

pub(super) fn read(files: &Files<'_>) -> Memory {
    let (lockable, lockable_hard) = lockable(files);
    let pages = |name: &String| {
        let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let number = |what| files.number(&format!("sys/kernel/mm/hugepages/{name}/{what}"));
        let (total, free) = (number("nr_hugepages")?, number("free_hugepages").unwrap_or(0));
        Some(HugePages { bytes: kilobytes << 10, total, free })
    };
    let mut huge_pages: Vec<HugePages> =
        files.names("sys/kernel/mm/hugepages").iter().filter_map(pages).collect();
    huge_pages.sort_by_key(|pages| pages.bytes);
    Memory {
        lockable,
        lockable_hard,
        huge_pages,
        transparent: files.chosen("sys/kernel/mm/transparent_hugepage/enabled"),
        transparent_shared: files.chosen("sys/kernel/mm/transparent_hugepage/shmem_enabled"),
    }
}

fn lockable(files: &Files<'_>) -> (Option<Lockable>, Option<u64>) {
    let limits = files.field("proc/self/limits", "Max locked memory").unwrap_or_default();
    let mut words = limits.split_whitespace();
    let (soft, hard) = (words.next(), words.next());
    let rights = files.field("proc/self/status", "CapEff:");
    let rights = rights.and_then(|hex| u64::from_str_radix(&hex, 16).ok()).unwrap_or(0);
    let lockable = match soft {
        Some("unlimited") => Some(Lockable::Unlimited),
        Some(_) if rights & IPC_LOCK != 0 => Some(Lockable::Privileged),
        Some(bytes) => bytes.parse().ok().map(Lockable::Bytes),
        None => None,
    };
    (lockable, hard.and_then(|bytes| bytes.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
                          Max open files            1024                 1048576              files     \n\
                          Max locked memory         8388608              16777216             bytes     ";

    fn limits(limits: &str, status: &str) -> Memory {
        read(&Files::new(tree(&[("proc/self/limits", limits), ("proc/self/status", status)]).path()))
    }

    #[test]
    fn the_limit_is_that_of_the_process_unless_it_may_pass_over_it() {
        let memory = limits(LIMITS, "Name:\tx\nCapEff:\t0000000000000000");
        assert_eq!((memory.lockable, memory.lockable_hard), (Some(Lockable::Bytes(8 << 20)), Some(16 << 20)));
        assert_eq!(limits(LIMITS, "CapEff:\t000001ffffffffff").lockable, Some(Lockable::Privileged));
        let none = limits("Max locked memory         unlimited            unlimited            bytes", "");
        assert_eq!((none.lockable, none.lockable_hard), (Some(Lockable::Unlimited), None));
        assert_eq!(limits("", "").lockable, None);
    }

    #[test]
    fn huge_pages_are_read_by_size() {
        let at = "sys/kernel/mm/hugepages";
        let root = tree(&[
            (&format!("{at}/hugepages-1048576kB/nr_hugepages"), "1"),
            (&format!("{at}/hugepages-2048kB/nr_hugepages"), "64"),
            (&format!("{at}/hugepages-2048kB/free_hugepages"), "60"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never"),
            (
                "sys/kernel/mm/transparent_hugepage/shmem_enabled",
                "always within_size advise [never] deny force",
            ),
        ]);
        let memory = read(&Files::new(root.path()));
        let expected = [
            HugePages { bytes: 2 << 20, total: 64, free: 60 },
            HugePages { bytes: 1 << 30, total: 1, free: 0 },
        ];
        assert_eq!(memory.huge_pages, expected);
        assert_eq!(memory.transparent.as_deref(), Some("always"));
        assert_eq!(memory.transparent_shared.as_deref(), Some("never"));
    }
}
