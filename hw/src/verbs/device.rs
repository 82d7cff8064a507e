//! The machine's RDMA devices: which there are, what they can do, and what they report.
//!
//! One of the modules in which `unsafe` is allowed (S2): calls of libibverbs that look at devices. Its invariant: the pointer
//! in a [`Context`] came from `ibv_open_device` and is closed once, when the last who uses the device is gone.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rdma_sys as ffi;

/// `IBV_LINK_LAYER_ETHERNET`, which the binding leaves out.
const ETHERNET: u8 = 2;

/// An opened device.
pub(super) struct Context {
    pub(super) raw: NonNull<ffi::ibv_context>,
    name: String,
}

// SAFETY: libibverbs may be called from any thread (its manual page says so of all its calls).
unsafe impl Send for Context {}
// SAFETY: as above, and nothing here changes what the pointer stands for.
unsafe impl Sync for Context {}

/// What a device can do, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) queue_depth: usize,
    pub(super) completions: usize,
    pub(super) ports: u8,
}

/// A port of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// It carries traffic.
    pub active: bool,
    /// Ethernet below (RoCE), where peers are addressed by GID; else InfiniBand, where they are by LID.
    pub ethernet: bool,
    /// Payload of a packet, as the verbs number it: 1 for 256 bytes to 5 for 4,096.
    pub mtu: u8,
    /// The most that it could be.
    pub mtu_max: u8,
    /// Its address on an InfiniBand subnet.
    pub lid: u16,
    /// Length of the table of GIDs.
    pub gids: usize,
}

/// Something that a device reports apart from completions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// The device is gone or beyond use.
    Device(String),
    /// A queue pair is; by the address of its structure.
    Pair(usize, String),
    /// Nothing that a link depends on.
    Other(String),
}

/// The names of the devices that this process sees.
///
/// # Errors
/// The kernel has no RDMA.
pub fn names() -> io::Result<Vec<String>> {
    let mut count = 0;
    // SAFETY: the call writes the count and returns a list that is freed below, or null.
    let list = unsafe { ffi::ibv_get_device_list(&raw mut count) };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: the list holds `count` devices until it is freed.
    let devices = unsafe { std::slice::from_raw_parts(list, count) };
    let names = devices.iter().map(|device| name_of(*device)).collect();
    // SAFETY: it came from `ibv_get_device_list` and is not used any more.
    unsafe { ffi::ibv_free_device_list(list) };
    Ok(names)
}

fn name_of(device: *mut ffi::ibv_device) -> String {
    // SAFETY: a device of a list that is not yet freed; its name is a string inside its structure.
    let name = unsafe { ffi::ibv_get_device_name(device) };
    if name.is_null() {
        return String::new();
    }
    // SAFETY: a string that ends, of a device that is still there.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

impl Context {
    /// Opens the device of that name.
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let mut count = 0;
        // SAFETY: as in `names`.
        let list = unsafe { ffi::ibv_get_device_list(&raw mut count) };
        if list.is_null() {
            return Err(io::Error::last_os_error());
        }
        let count = usize::try_from(count).unwrap_or(0);
        // SAFETY: as in `names`.
        let devices = unsafe { std::slice::from_raw_parts(list, count) };
        let opened = match devices.iter().find(|device| name_of(**device) == name) {
            Some(device) => {
                // SAFETY: a device of a list that is not yet freed; what is opened outlives the list (its manual page).
                let context = unsafe { ffi::ibv_open_device(*device) };
                NonNull::new(context).ok_or_else(io::Error::last_os_error)
            }
            None => Err(io::ErrorKind::NotFound.into()),
        };
        // SAFETY: as in `names`.
        unsafe { ffi::ibv_free_device_list(list) };
        let context = Self { raw: opened?, name: name.to_owned() };
        rustix::io::ioctl_fionbio(context.reports(), true)?;
        Ok(context)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Readable when there is something to report.
    pub(super) fn reports(&self) -> BorrowedFd<'_> {
        // SAFETY: the context is open, so its structure is there.
        let fd = unsafe { (*self.raw.as_ptr()).async_fd };
        // SAFETY: the descriptor is the context's, which closes it no sooner than it is itself closed.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    pub(super) fn limits(&self) -> io::Result<Limits> {
        let mut found = MaybeUninit::<ffi::ibv_device_attr>::zeroed();
        // SAFETY: the context is open and the structure writable.
        checked(unsafe { ffi::ibv_query_device(self.raw.as_ptr(), found.as_mut_ptr()) })?;
        // SAFETY: plain numbers and bytes, zeroed and then filled in.
        let found = unsafe { found.assume_init() };
        Ok(Limits {
            queue_depth: usize::try_from(found.max_qp_wr).unwrap_or(0),
            completions: usize::try_from(found.max_cqe).unwrap_or(0),
            ports: found.phys_port_cnt,
        })
    }

    pub(super) fn port(&self, number: u8) -> io::Result<Port> {
        let mut found = MaybeUninit::<ffi::ibv_port_attr>::zeroed();
        // SAFETY: the context is open and the structure writable.
        checked(unsafe { ffi::___ibv_query_port(self.raw.as_ptr(), number, found.as_mut_ptr()) })?;
        // SAFETY: plain numbers, zeroed and then filled in.
        let found = unsafe { found.assume_init() };
        Ok(Port {
            active: found.state == ffi::ibv_port_state::IBV_PORT_ACTIVE,
            ethernet: found.link_layer == ETHERNET,
            mtu: u8::try_from(found.active_mtu).unwrap_or(0),
            mtu_max: u8::try_from(found.max_mtu).unwrap_or(0),
            lid: found.lid,
            gids: usize::try_from(found.gid_tbl_len).unwrap_or(0),
        })
    }

    /// A GID of a port; an empty place reads as zeros or not at all.
    pub(super) fn gid(&self, port: u8, index: usize) -> io::Result<[u8; 16]> {
        let mut gid = ffi::ibv_gid { raw: [0; 16] };
        let index = i32::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the context is open and the structure writable.
        checked(unsafe { ffi::ibv_query_gid(self.raw.as_ptr(), port, index, &raw mut gid) })?;
        // SAFETY: all sixteen bytes were set, whichever way they are read.
        Ok(unsafe { gid.raw })
    }

    /// The next report, if there is one. Does not block.
    pub(super) fn next_report(&self) -> Option<Report> {
        let mut event = MaybeUninit::<ffi::ibv_async_event>::zeroed();
        // SAFETY: the context is open, its descriptor does not block, and the structure is writable.
        if unsafe { ffi::ibv_get_async_event(self.raw.as_ptr(), event.as_mut_ptr()) } != 0 {
            return None;
        }
        let filled = event.as_mut_ptr();
        // SAFETY: the field lies in the structure; only its address is taken here.
        let kind = unsafe { &raw const (*filled).event_type }.cast::<u32>();
        // SAFETY: filled in; read as a number because a library younger than its headers may know more kinds.
        let kind = unsafe { kind.read() };
        // SAFETY: as above; only an address is taken.
        let element = unsafe { &raw const (*filled).element }.cast::<usize>();
        // SAFETY: the union was zeroed and then filled in; as a number it says which queue pair, if it is one.
        let element = unsafe { element.read() };
        // SAFETY: an event that was got and is acknowledged once; whoever destroys what it names waits for this.
        unsafe { ffi::ibv_ack_async_event(filled) };
        Some(read_report(kind, element))
    }
}

/// The kinds of `enum ibv_event_type`, by number.
fn read_report(kind: u32, element: usize) -> Report {
    match kind {
        1 => Report::Pair(element, "the queue pair failed".to_owned()),
        2 => Report::Pair(element, "the peer sent what the queue pair can't take".to_owned()),
        3 => Report::Pair(element, "the peer wrote where it may not".to_owned()),
        // It doesn't say whose: no link can be trusted to complete any more (F5).
        0 => Report::Device("a completion queue failed".to_owned()),
        8 => Report::Device("the RDMA device failed or was removed".to_owned()),
        9 => Report::Other("the port is up".to_owned()),
        10 => Report::Other("the port is down".to_owned()),
        18 => Report::Other("the port's GIDs changed".to_owned()),
        other => Report::Other(format!("the device reports event {other}")),
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; all objects made of it hold it and so are gone.
        let _ = unsafe { ffi::ibv_close_device(self.raw.as_ptr()) }; // nothing is left to do if it fails
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context({})", self.name)
    }
}

/// What a call said that returns zero or an error number, or −1 and leaves the number in `errno`.
pub(super) fn checked(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        number => Err(io::Error::from_raw_os_error(number.abs())),
    }
}

/// What the kernel says of a GID beside its bytes: its type, and the network device that it belongs to.
pub(super) fn gid_attributes(device: &str, port: u8, index: usize) -> (Option<String>, Option<String>) {
    let read = |what: &str| {
        let file = format!("/sys/class/infiniband/{device}/ports/{port}/gid_attrs/{what}/{index}");
        let text = std::fs::read_to_string(file).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    (read("types"), read("ndevs"))
}

/// Whether a device has that name; names that could lead elsewhere in a file system are none.
pub(super) fn is_name(name: &str) -> bool {
    CString::new(name).is_ok() && !name.is_empty() && !name.contains('/')
}
