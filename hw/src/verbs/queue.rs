//! Protection domains, registered memory, completion queues and queue pairs, as values that keep what they stand on.
//!
//! One of the modules in which `unsafe` is allowed (S2): calls of libibverbs that make, use and destroy objects. What makes them
//! sound:
//!
//! - *Order of ends.* An object holds, by reference count, each object that it was made of. So a queue pair ends before its
//!   regions and completion queue, these before their domain, and that before its device.
//! - *Memory.* A [`Region`] holds the memory that the device may touch, and lets it go only when the device has
//!   confirmed that it will not touch it any more; where it does not confirm, the memory is never freed.
//! - *Bounds.* What is posted lies inside a region of this queue pair, and is meant for inside the peer's: asserted.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use consort_dataplane::memory::Segment;
use rdma_sys as ffi;

use super::device::{Context, checked};

/// Completions taken from a queue at once.
const TAKEN: usize = 32;

/// Objects that may only be used together.
pub(super) struct Domain {
    raw: NonNull<ffi::ibv_pd>,
    context: Arc<Context>,
}

// SAFETY: libibverbs may be called from any thread.
unsafe impl Send for Domain {}
// SAFETY: as above, and nothing here changes what the pointer stands for.
unsafe impl Sync for Domain {}

impl Domain {
    pub(super) fn new(context: &Arc<Context>) -> io::Result<Arc<Self>> {
        // SAFETY: the context is open.
        let raw = unsafe { ffi::ibv_alloc_pd(context.raw.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Arc::new(Self { raw, context: Arc::clone(context) }))
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once, after all that was made of it, which holds it.
        let result = unsafe { ffi::ibv_dealloc_pd(self.raw.as_ptr()) };
        if let Err(cause) = checked(result) {
            tracing::debug!(device = self.context.name(), %cause, "a protection domain could not be given back");
        }
    }
}

/// What the other side of a queue pair may do to a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing: this node sends from it.
    Source,
    /// Write into it.
    Target,
}

/// Memory that a device may touch.
pub(super) struct Region {
    raw: NonNull<ffi::ibv_mr>,
    memory: Segment,
    _domain: Arc<Domain>,
}

// SAFETY: libibverbs may be called from any thread; the memory is `Send`.
unsafe impl Send for Region {}

impl Region {
    /// Registers all of `memory`. Pins it, so it takes a while, and counts against the limit of locked memory.
    pub(super) fn new(domain: &Arc<Domain>, memory: &Segment, access: Access) -> io::Result<Self> {
        let access = match access {
            Access::Source => ffi::ibv_access_flags(0),
            // Not "relaxed ordering", with which later writes could overtake earlier ones (F1).
            Access::Target => {
                ffi::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE | ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
            }
        };
        let access = access.0.cast_signed();
        // SAFETY: the memory is mapped for as long as `self` holds it; what a device writes there are words of a mirror, which
        // are read as atomics, or ring bytes that no word vouches for yet.
        let raw =
            unsafe { ffi::ibv_reg_mr(domain.raw.as_ptr(), memory.as_ptr().cast(), memory.size(), access) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { raw, memory: memory.clone(), _domain: Arc::clone(domain) })
    }

    /// What a peer must say to write into it.
    pub(super) fn remote_key(&self) -> u32 {
        // SAFETY: the region is registered, so its structure is there.
        unsafe { (*self.raw.as_ptr()).rkey }
    }

    /// Where it begins.
    pub(super) fn address(&self) -> u64 {
        self.memory.as_ptr() as u64
    }

    fn local_key(&self) -> u32 {
        // SAFETY: as in `remote_key`.
        unsafe { (*self.raw.as_ptr()).lkey }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: registered once and given back once.
        let result = unsafe { ffi::ibv_dereg_mr(self.raw.as_ptr()) };
        if let Err(cause) = checked(result) {
            // The device may still touch it: so it is never freed.
            tracing::error!(%cause, "registered memory could not be given back; it is kept for good");
            std::mem::forget(self.memory.clone());
        }
    }
}

/// Ends sleeps when completions come.
pub(super) struct Channel {
    raw: NonNull<ffi::ibv_comp_channel>,
    context: Arc<Context>,
}

// SAFETY: libibverbs may be called from any thread.
unsafe impl Send for Channel {}
// SAFETY: as above, and nothing here changes what the pointer stands for.
unsafe impl Sync for Channel {}

impl Channel {
    pub(super) fn new(context: &Arc<Context>) -> io::Result<Arc<Self>> {
        // SAFETY: the context is open.
        let raw = unsafe { ffi::ibv_create_comp_channel(context.raw.as_ptr()) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        let channel = Self { raw, context: Arc::clone(context) };
        rustix::io::ioctl_fionbio(channel.as_fd(), true)?;
        Ok(Arc::new(channel))
    }

    /// Takes what the channel has to tell. Does not block.
    pub(super) fn quiet(&self) {
        loop {
            let mut queue = std::ptr::null_mut();
            let mut data = std::ptr::null_mut();
            // SAFETY: the channel is there, its descriptor does not block, and both places are writable.
            if unsafe { ffi::ibv_get_cq_event(self.raw.as_ptr(), &raw mut queue, &raw mut data) } != 0 {
                return;
            }
            // SAFETY: a queue whose event was just got is there: its end waits until the event is acknowledged.
            unsafe { ffi::ibv_ack_cq_events(queue, 1) };
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is there, so its structure is.
        let fd = unsafe { (*self.raw.as_ptr()).fd };
        // SAFETY: the descriptor is the channel's, which closes it only at its end.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once, after the queues that tell through it, which hold it.
        let result = unsafe { ffi::ibv_destroy_comp_channel(self.raw.as_ptr()) };
        if let Err(cause) = checked(result) {
            tracing::debug!(device = self.context.name(), %cause, "a completion channel could not be given back");
        }
    }
}

/// Something that a queue pair has done, or failed to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Completion {
    /// All writes posted up to this count have arrived.
    Written(u32),
    /// The peer rang: a write of its came with a number.
    Rung,
    /// It failed, and the queue pair with it.
    Failed(String),
}

/// Where completions of one queue pair arrive.
struct Completions {
    raw: NonNull<ffi::ibv_cq>,
    _channel: Arc<Channel>,
}

impl Completions {
    fn new(channel: &Arc<Channel>, entries: usize) -> io::Result<Self> {
        let entries = i32::try_from(entries).map_err(|_| io::ErrorKind::InvalidInput)?;
        let context = channel.context.raw.as_ptr();
        let nothing = std::ptr::null_mut();
        // SAFETY: context and channel are there, and the queue holds the channel, which holds the context.
        let raw = unsafe { ffi::ibv_create_cq(context, entries, nothing, channel.raw.as_ptr(), 0) };
        let raw = NonNull::new(raw).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { raw, _channel: Arc::clone(channel) })
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once, after the queue pair that holds it; all its events are acknowledged.
        let result = unsafe { ffi::ibv_destroy_cq(self.raw.as_ptr()) };
        if let Err(cause) = checked(result) {
            tracing::debug!(%cause, "a completion queue could not be given back");
        }
    }
}

/// Where a write takes its bytes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The node's segment.
    Segment,
    /// The link's stage, where words wait as they were when they were published.
    Stage,
}

/// One RDMA WRITE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) source: Source,
    /// Bytes of the source.
    pub(super) from: Range<usize>,
    /// Where they go, as an offset into the peer's mirror of this node.
    pub(super) to: usize,
    /// Its completion is to be told.
    pub(super) signalled: bool,
    /// It rings the peer.
    pub(super) rings: bool,
}

/// What a queue pair is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Depths {
    pub(super) sends: usize,
    pub(super) receives: usize,
    pub(super) inline: usize,
}

/// The peer's end, as it told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) pair: u32,
    pub(super) sequence: u32,
    pub(super) gid: [u8; 16],
    pub(super) lid: u16,
    /// Its mirror of this node: where it begins, and the key to it.
    pub(super) address: u64,
    pub(super) key: u32,
}

/// How packets go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) port: u8,
    pub(super) ethernet: bool,
    pub(super) gid_index: u8,
    pub(super) mtu: u8,
    pub(super) traffic_class: u8,
    /// This end's first packet sequence number.
    pub(super) sequence: u32,
    pub(super) timeout: u8,
    pub(super) retries: u8,
}

/// Work requests in the making. Memory that is used again, no more.
#[derive(Default)]
pub(super) struct Requests {
    writes: Vec<ffi::ibv_send_wr>,
    parts: Vec<ffi::ibv_sge>,
}

// SAFETY: what goes to another thread between calls are addresses that are not looked at again: `post` clears them first.
unsafe impl Send for Requests {}

/// One end of a reliable connection, and the regions that it uses. The only queue pair of its domain, so the key of its target
/// opens that to this one peer (S3).
pub(super) struct Pair {
    raw: NonNull<ffi::ibv_qp>,
    completions: Completions,
    segment: Region,
    stage: Region,
    /// The mirror of the peer.
    target: Option<Region>,
    domain: Arc<Domain>,
    peer: Option<Peer>,
    inline: usize,
    /// Writes posted, modulo 2³².
    posted: u32,
    /// Registrations of the segment that were renewed, and how many writes were posted until then: those may still be read from them.
    former: Vec<(u32, Region)>,
}

// SAFETY: libibverbs may be called from any thread; the regions are `Send`.
unsafe impl Send for Pair {}

impl Pair {
    /// Makes a queue pair that sends from `segment` and `stage`, and into whose `target` its peer writes.
    pub(super) fn new(
        channel: &Arc<Channel>,
        (segment, stage, target): (&Segment, &Segment, &Segment),
        depths: Depths,
    ) -> io::Result<Self> {
        let domain = Domain::new(&channel.context)?;
        let segment = Region::new(&domain, segment, Access::Source)?;
        let stage = Region::new(&domain, stage, Access::Source)?;
        let target = Region::new(&domain, target, Access::Target)?;
        // A failing pair completes all that it was given, signalled or not.
        let completions = Completions::new(channel, depths.sends + depths.receives + 1)?;
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let mut inline = depths.inline;
        let raw = loop {
            let mut wanted = ffi::ibv_qp_init_attr {
                qp_context: std::ptr::null_mut(),
                send_cq: completions.raw.as_ptr(),
                recv_cq: completions.raw.as_ptr(),
                srq: std::ptr::null_mut(),
                cap: ffi::ibv_qp_cap {
                    max_send_wr: number(depths.sends),
                    max_recv_wr: number(depths.receives),
                    max_send_sge: 1,
                    max_recv_sge: 1,
                    max_inline_data: number(inline),
                },
                qp_type: ffi::ibv_qp_type::IBV_QPT_RC,
                sq_sig_all: 0,
            };
            // SAFETY: domain and queue are there, and the pair holds both.
            let raw = unsafe { ffi::ibv_create_qp(domain.raw.as_ptr(), &raw mut wanted) };
            match NonNull::new(raw) {
                Some(raw) => break raw,
                // More inline data than the device has: there is no other way to find its limit.
                None if inline > 0 => inline /= 2,
                None => return Err(io::Error::last_os_error()),
            }
        };
        let pair = Self {
            raw,
            completions,
            segment,
            stage,
            target: Some(target),
            domain,
            peer: None,
            inline,
            posted: 0,
            former: Vec::new(),
        };
        Ok(pair)
    }

    /// Registers the segment anew: other memory lies in a part of it, of which the device knows nothing.
    pub(super) fn renew(&mut self, segment: &Segment) -> io::Result<()> {
        let new = Region::new(&self.domain, segment, Access::Source)?;
        self.former.push((self.posted, std::mem::replace(&mut self.segment, new)));
        Ok(())
    }

    /// Its number, which a peer must know.
    pub(super) fn number(&self) -> u32 {
        // SAFETY: the pair is there, so its structure is.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    /// Tells it from others in reports.
    pub(super) fn name(&self) -> usize {
        self.raw.as_ptr() as usize
    }

    /// Where the peer is to write, and the key.
    pub(super) fn target(&self) -> (u64, u32) {
        self.target.as_ref().map_or((0, 0), |target| (target.address(), target.remote_key()))
    }

    /// Bytes that a write may carry with it.
    pub(super) fn inline(&self) -> usize {
        self.inline
    }

    /// Connects to the peer: from now on both can write.
    pub(super) fn connect(&mut self, peer: Peer, path: &Path, receives: usize) -> io::Result<()> {
        use ffi::ibv_qp_attr_mask as Mask;
        let mut attributes = self.attributes();
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_INIT;
        attributes.port_num = path.port;
        attributes.qp_access_flags = ffi::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        let mask =
            Mask::IBV_QP_STATE | Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_ACCESS_FLAGS;
        self.modify(&mut attributes, mask)?;
        self.expect(receives)?;

        let mut attributes = self.attributes();
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_RTR;
        attributes.path_mtu = u32::from(path.mtu);
        attributes.dest_qp_num = peer.pair;
        attributes.rq_psn = peer.sequence;
        attributes.max_dest_rd_atomic = 1;
        attributes.min_rnr_timer = 14; // 1 ms; it never comes to that, see `Naps`
        attributes.ah_attr.port_num = path.port;
        attributes.ah_attr.dlid = peer.lid;
        if path.ethernet {
            attributes.ah_attr.is_global = 1;
            attributes.ah_attr.grh.dgid = ffi::ibv_gid { raw: peer.gid };
            attributes.ah_attr.grh.sgid_index = path.gid_index;
            attributes.ah_attr.grh.hop_limit = 64;
            attributes.ah_attr.grh.traffic_class = path.traffic_class;
        }
        let mask = Mask::IBV_QP_STATE
            | Mask::IBV_QP_AV
            | Mask::IBV_QP_PATH_MTU
            | Mask::IBV_QP_DEST_QPN
            | Mask::IBV_QP_RQ_PSN
            | Mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | Mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attributes, mask)?;

        let mut attributes = self.attributes();
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_RTS;
        attributes.sq_psn = path.sequence;
        attributes.timeout = path.timeout;
        attributes.retry_cnt = path.retries;
        attributes.rnr_retry = 6; // 7 would be for ever
        attributes.max_rd_atomic = 1;
        let mask = Mask::IBV_QP_STATE
            | Mask::IBV_QP_TIMEOUT
            | Mask::IBV_QP_RETRY_CNT
            | Mask::IBV_QP_RNR_RETRY
            | Mask::IBV_QP_SQ_PSN
            | Mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attributes, mask)?;
        self.peer = Some(peer);
        Ok(())
    }

    fn attributes(&self) -> ffi::ibv_qp_attr {
        // SAFETY: the structure is numbers, bytes and unions of these, for which zeros are valid.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }

    fn modify(&mut self, attributes: &mut ffi::ibv_qp_attr, mask: ffi::ibv_qp_attr_mask) -> io::Result<()> {
        let mask = mask.0.cast_signed();
        // SAFETY: the pair is there; the call reads the attributes and keeps nothing of them.
        checked(unsafe { ffi::ibv_modify_qp(self.raw.as_ptr(), attributes, mask) })
    }

    /// Makes room for so many more rings of the peer.
    pub(super) fn expect(&mut self, rings: usize) -> io::Result<()> {
        for _ in 0..rings {
            let mut wanted = ffi::ibv_recv_wr {
                wr_id: 0,
                next: std::ptr::null_mut(),
                sg_list: std::ptr::null_mut(),
                num_sge: 0,
            };
            let mut refused = std::ptr::null_mut();
            // SAFETY: the pair is there; the request names no memory, and the call keeps no address of it.
            checked(unsafe { ffi::ibv_post_recv(self.raw.as_ptr(), &raw mut wanted, &raw mut refused) })?;
        }
        Ok(())
    }

    /// Posts writes, all with one ring of the device's doorbell.
    ///
    /// Panics if one leads out of a region or of the peer's mirror.
    pub(super) fn post(&mut self, writes: &[Write], requests: &mut Requests) -> io::Result<()> {
        let (Some(peer), false) = (self.peer, writes.is_empty()) else { return Ok(()) };
        requests.writes.clear();
        requests.parts.clear();
        let mut count = self.posted;
        for write in writes {
            let region = match write.source {
                Source::Segment => &self.segment,
                Source::Stage => &self.stage,
            };
            assert!(
                write.from.start < write.from.end
                    && write.from.end <= region.memory.size()
                    && write.to + write.from.len() <= self.segment.memory.size(),
                "a write of bytes {:?} to {} leads out of its region",
                write.from,
                write.to
            );
            count = count.wrapping_add(1);
            let inline = write.from.len() <= self.inline;
            requests.parts.push(ffi::ibv_sge {
                addr: region.address() + write.from.start as u64,
                length: u32::try_from(write.from.len()).unwrap_or(u32::MAX),
                lkey: region.local_key(),
            });
            let mut flags = ffi::ibv_send_flags(0);
            if inline {
                flags |= ffi::ibv_send_flags::IBV_SEND_INLINE;
            }
            if write.signalled || write.rings {
                flags |= ffi::ibv_send_flags::IBV_SEND_SIGNALED;
            }
            // SAFETY: the structure is numbers, addresses and unions of these, for which zeros are valid.
            let mut request: ffi::ibv_send_wr = unsafe { MaybeUninit::zeroed().assume_init() };
            request.wr_id = u64::from(count);
            request.num_sge = 1;
            request.send_flags = flags.0;
            request.opcode = if write.rings {
                ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM
            } else {
                ffi::ibv_wr_opcode::IBV_WR_RDMA_WRITE
            };
            request.wr.rdma = ffi::rdma_t { remote_addr: peer.address + write.to as u64, rkey: peer.key };
            requests.writes.push(request);
        }
        // Both lists are complete and move no more: now they can point at each other.
        for at in 0..writes.len() {
            requests.writes[at].sg_list = &raw mut requests.parts[at];
            if at + 1 < writes.len() {
                requests.writes[at].next = &raw mut requests.writes[at + 1];
            }
        }
        let first = requests.writes.as_mut_ptr();
        let mut refused = std::ptr::null_mut();
        // SAFETY: the pair is there. The list of requests ends with a null pointer and outlives the call, which keeps no address
        // of it. Each names bytes inside a region that the pair holds (asserted) and that stay as they are until the peer
        // has them: the stage's until their completion, and the segment's are published ring bytes. What goes inline is
        // read during the call, by this thread, and nobody writes there: the stage is this thread's, and as above.
        let result = checked(unsafe { ffi::ibv_post_send(self.raw.as_ptr(), first, &raw mut refused) });
        let taken = match &result {
            Ok(()) => writes.len(),
            // Compared as addresses: it names one of ours, or it is null.
            Err(_) => requests.writes.iter().position(|write| std::ptr::eq(write, refused)).unwrap_or(0),
        };
        self.posted = self.posted.wrapping_add(u32::try_from(taken).unwrap_or(0));
        result
    }

    /// Takes completions that have come, into `found`. Does not block.
    pub(super) fn completions(&mut self, found: &mut Vec<Completion>) {
        loop {
            let mut room = [const { MaybeUninit::<ffi::ibv_wc>::uninit() }; TAKEN];
            // SAFETY: the queue is there, and the room is for so many.
            let got = unsafe {
                ffi::ibv_poll_cq(self.completions.raw.as_ptr(), TAKEN as i32, room.as_mut_ptr().cast())
            };
            let got = usize::try_from(got).unwrap_or_else(|_| {
                found.push(Completion::Failed("its completions can't be read".to_owned()));
                0
            });
            for place in &room[..got] {
                // SAFETY: the call filled in the first `got`.
                let done = unsafe { place.assume_init_ref() };
                found.push(if done.status != ffi::ibv_wc_status::IBV_WC_SUCCESS {
                    Completion::Failed(status(done.status))
                } else if done.opcode == ffi::ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM {
                    Completion::Rung
                } else {
                    let count = done.wr_id as u32;
                    self.former.retain(|(posted, _)| count.wrapping_sub(*posted).cast_signed() < 0);
                    Completion::Written(count)
                });
            }
            if got < TAKEN {
                return;
            }
        }
    }

    /// Has the next completion end a sleep. Completions must be looked for once more after this.
    pub(super) fn arm(&mut self) {
        // SAFETY: the queue is there.
        let result = unsafe { ffi::ibv_req_notify_cq(self.completions.raw.as_ptr(), 0) };
        if let Err(cause) = checked(result) {
            tracing::debug!(%cause, "completions will not end the sleep");
        }
    }

    /// After this no byte from the peer lands here any more, and nothing goes out (F4).
    pub(super) fn cut(mut self) -> io::Result<()> {
        let mut attributes = self.attributes();
        attributes.qp_state = ffi::ibv_qp_state::IBV_QPS_ERR;
        let stopped = self.modify(&mut attributes, ffi::ibv_qp_attr_mask::IBV_QP_STATE);
        // The key is revoked (S3) before the queue pair is gone, whether or not that obeyed.
        drop(self.target.take());
        stopped
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once, before its regions, queue and domain, which it holds.
        let result = unsafe { ffi::ibv_destroy_qp(self.raw.as_ptr()) };
        if let Err(cause) = checked(result) {
            tracing::debug!(
                device = self.domain.context.name(), %cause, "a queue pair could not be given back"
            );
        }
    }
}

/// What went wrong, and what that means.
fn status(status: ffi::ibv_wc_status::Type) -> String {
    // SAFETY: the call takes any number and returns a string that is there for good.
    let text = unsafe { ffi::ibv_wc_status_str(status) };
    // SAFETY: as above; it ends.
    let text = unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy();
    let meaning = match status {
        ffi::ibv_wc_status::IBV_WC_RETRY_EXC_ERR => {
            ": the peer's device does not answer; it may be gone, have cut the link, or be unreachable with this GID or MTU"
        }
        ffi::ibv_wc_status::IBV_WC_REM_ACCESS_ERR => ": the peer's memory is not open to this node any more",
        ffi::ibv_wc_status::IBV_WC_WR_FLUSH_ERR => {
            ": the queue pair had failed before; its address (GID) may have been taken away, or the peer have cut the link"
        }
        ffi::ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR => ": the peer does not take up rings",
        _ => "",
    };
    format!("{text}{meaning}")
}
