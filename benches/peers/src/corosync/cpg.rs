//! The few calls of libcpg that a client needs, found at run time, so that this builds where Corosync isn't installed.
//!
//! Declarations are those of `corosync/cpg.h` and `corosync/corotypes.h` of Corosync 3 (cpg_initialize(3), cpg_dispatch(3) and so on).
//! What is delivered is given to a function of the thread that dispatches; the library has no threads of its own.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::rc::Rc;

use libloading::{Library, Symbol};

use crate::failure::Failure;

/// The library's name with the version of its interface, as the package libcpg4 has it.
const LIBRARY: &str = "libcpg.so.4";

const CS_OK: c_int = 1;
const CS_ERR_TRY_AGAIN: c_int = 6;
const CS_DISPATCH_ALL: c_int = 2;
const CPG_TYPE_AGREED: c_int = 2;

/// `struct cpg_name`.
#[repr(C)]
struct Name {
    length: u32,
    value: [c_char; 128],
}

/// `struct cpg_address`; only how many there are is looked at.
#[repr(C)]
struct Address {
    node: u32,
    pid: u32,
    reason: u32,
}

/// `struct iovec`.
#[repr(C)]
struct Slice {
    base: *const c_void,
    length: usize,
}

type Deliver = extern "C" fn(u64, *const Name, u32, u32, *const c_void, usize);
type Change =
    extern "C" fn(u64, *const Name, *const Address, usize, *const Address, usize, *const Address, usize);

/// `cpg_callbacks_t`.
#[repr(C)]
struct Callbacks {
    deliver: Deliver,
    change: Change,
}

type Initialize = unsafe extern "C" fn(*mut u64, *const Callbacks) -> c_int;
type Join = unsafe extern "C" fn(u64, *const Name) -> c_int;
type Dispatch = unsafe extern "C" fn(u64, c_int) -> c_int;
type Multicast = unsafe extern "C" fn(u64, c_int, *const Slice, c_uint) -> c_int;
type Finalize = unsafe extern "C" fn(u64) -> c_int;

/// Takes the sender's node and what it sent.
pub(super) type Sink = Rc<RefCell<dyn FnMut(u32, &[u8])>>;

thread_local! {
    // The first interface of the library has no argument for the application, and dispatches in the thread that asks it to.
    static SINK: RefCell<Option<Sink>> = const { RefCell::new(None) };
    static MEMBERS: RefCell<usize> = const { RefCell::new(0) };
}

extern "C" fn deliver(_: u64, _: *const Name, node: u32, _: u32, message: *const c_void, length: usize) {
    if message.is_null() {
        return;
    }
    // SAFETY: the library gives a message of so many bytes that stays where it is until the function returns (cpg_initialize(3)).
    let bytes = unsafe { std::slice::from_raw_parts(message.cast::<u8>(), length) };
    let sink = SINK.with_borrow(Clone::clone);
    if let Some(sink) = sink {
        (sink.borrow_mut())(node, bytes);
    }
}

extern "C" fn change(
    _: u64,
    _: *const Name,
    _: *const Address,
    members: usize,
    _: *const Address,
    _: usize,
    _: *const Address,
    _: usize,
) {
    MEMBERS.with_borrow_mut(|it| *it = members);
}

/// A member of a group.
pub(super) struct Group {
    handle: u64,
    dispatch: Dispatch,
    multicast: Multicast,
    finalize: Finalize,
    /// The functions above are in it.
    _library: Library,
}

fn refused(doing: &str, code: c_int) -> Failure {
    Failure::run(
        format!("Corosync: can't {doing}: error {code} of corosync/corotypes.h"),
        "run it again, on a machine with less to do",
    )
}

/// Whether the library is there.
///
/// # Errors
/// It isn't.
pub(super) fn load() -> Result<Library, Failure> {
    // SAFETY: the library's initialisers do nothing that this program relies on; it is Debian's.
    let library = unsafe { Library::new(LIBRARY) };
    library.map_err(|cause| {
        Failure::run(
            format!("{LIBRARY} isn't installed: {cause}"),
            "run scripts/peers, which installs what the peers need",
        )
    })
}

/// A function of the library.
///
/// # Safety
/// `T` is the type that the header gives the function of this name.
unsafe fn function<T: Copy>(library: &Library, name: &str) -> Result<T, Failure> {
    // SAFETY: as the caller says.
    let symbol: Result<Symbol<'_, T>, _> = unsafe { library.get(name.as_bytes()) };
    symbol
        .map(|it| *it)
        .map_err(|cause| Failure::run(format!("{LIBRARY}: {cause}"), "install libcpg4 of Debian 12 or later"))
}

impl Group {
    /// Joins a group. What is delivered in it is given to `sink`, in [`Group::dispatch`].
    ///
    /// # Errors
    /// The library isn't there, or Corosync can't be reached (yet).
    pub(super) fn join(name: &str, sink: Sink) -> Result<Self, Failure> {
        let library = load()?;
        // SAFETY: the type is that of the header.
        let initialize: Initialize = unsafe { function(&library, "cpg_initialize")? };
        // SAFETY: the type is that of the header.
        let join: Join = unsafe { function(&library, "cpg_join")? };
        // SAFETY: the type is that of the header.
        let dispatch = unsafe { function(&library, "cpg_dispatch")? };
        // SAFETY: the type is that of the header.
        let multicast = unsafe { function(&library, "cpg_mcast_joined")? };
        // SAFETY: the type is that of the header.
        let finalize = unsafe { function(&library, "cpg_finalize")? };
        let mut group = Self { handle: 0, dispatch, multicast, finalize, _library: library };
        let callbacks = Callbacks { deliver, change };
        // SAFETY: both point to what lives until the call returns; the library copies the callbacks.
        let code = unsafe { initialize(&raw mut group.handle, &raw const callbacks) };
        if code != CS_OK {
            group.handle = 0;
            return Err(refused("reach it", code));
        }
        SINK.with_borrow_mut(|it| *it = Some(sink));
        let mut value = [0; 128];
        for (to, from) in value.iter_mut().zip(name.bytes().take(127)) {
            *to = c_char::from_ne_bytes([from]);
        }
        let name = Name { length: u32::try_from(name.len().min(127)).unwrap_or(0), value };
        // SAFETY: the handle is the library's, and the name lives until the call returns.
        match unsafe { join(group.handle, &raw const name) } {
            CS_OK => Ok(group),
            code => Err(refused("join a group", code)),
        }
    }

    /// As many members as the last change of the group left.
    pub(super) fn members() -> usize {
        MEMBERS.with_borrow(|it| *it)
    }

    /// Sends a message in agreed order. Returns false if Corosync takes none at the moment.
    ///
    /// # Errors
    /// Corosync is gone, or refuses it.
    pub(super) fn send(&self, message: &[u8]) -> Result<bool, Failure> {
        let slice = Slice { base: message.as_ptr().cast(), length: message.len() };
        // SAFETY: the one slice and its bytes live until the call returns; the library copies them.
        match unsafe { (self.multicast)(self.handle, CPG_TYPE_AGREED, &raw const slice, 1) } {
            CS_OK => Ok(true),
            CS_ERR_TRY_AGAIN => Ok(false),
            code => Err(refused("send", code)),
        }
    }

    /// Delivers what has come, without waiting.
    ///
    /// # Errors
    /// Corosync is gone.
    pub(super) fn dispatch(&self) -> Result<(), Failure> {
        // SAFETY: the handle is the library's; the callbacks are functions of this program.
        match unsafe { (self.dispatch)(self.handle, CS_DISPATCH_ALL) } {
            CS_OK | CS_ERR_TRY_AGAIN => Ok(()),
            code => Err(refused("receive", code)),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.handle != 0 {
            // SAFETY: the handle is the library's, and not used again.
            let _ = unsafe { (self.finalize)(self.handle) };
        }
    }
}
