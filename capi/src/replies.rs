//! Replies of all members to one update: where they are kept while the program reads them.

use std::ffi::CString;
use std::ptr::null;
use std::sync::OnceLock;

use consort::object::{Lost, Replies};

use crate::border::{Handle, Out, Owned, export};
use crate::error::{Error, Status};
use crate::handles::{Kind, Registry};
use crate::layout::Reply;

/// Empty until the replies are there, which is before the program knows of the handle.
static REPLIES: Registry<OnceLock<Told>> = Registry::new(Kind::Replies);

/// Replies, by node, and all that their structs point to. Neither bytes nor texts move when this does.
pub(crate) struct Told {
    all: Owned<Vec<Reply>>,
    _bytes: Vec<Vec<u8>>,
    _texts: Vec<CString>,
}

impl Told {
    pub(crate) fn new(replies: Replies<Vec<u8>>) -> Self {
        let (mut all, mut bytes, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        for (node, mut reply) in replies.replies {
            let len = reply.len();
            reply.push(0); // so that a text is a string
            all.push(Reply {
                node: node.0,
                status: Status::Ok as i32,
                data: reply.as_ptr(),
                len,
                text: null(),
            });
            bytes.push(reply);
        }
        for (node, why) in replies.lost {
            let status = if why == Lost::Gone { Status::Unknown } else { Status::Refused };
            let text = CString::new(why.to_string().replace('\0', "?")).unwrap_or_default();
            all.push(Reply {
                node: node.0,
                status: status as i32,
                data: null(),
                len: 0,
                text: text.as_ptr(),
            });
            texts.push(text);
        }
        all.sort_by_key(|reply| reply.node);
        Self { all: Owned(all), _bytes: bytes, _texts: texts }
    }

    /// Lives as long as this does.
    pub(crate) fn all(&self) -> &[Reply] {
        &self.all.0
    }
}

/// A handle without replies yet: to be had before the update is sent, which can't be undone.
pub(crate) struct Empty(Option<Handle>);

pub(crate) fn place() -> Result<Empty, Error> {
    Ok(Empty(Some(REPLIES.put(OnceLock::new())?)))
}

impl Empty {
    pub(crate) fn fill(mut self, replies: Replies<Vec<u8>>) -> Handle {
        let handle = self.0.take().unwrap_or(Handle::of(0)); // it is there: this is called once
        if let Ok(empty) = REPLIES.find(handle) {
            empty.get_or_init(|| Told::new(replies));
        }
        handle
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            drop(REPLIES.take(handle));
        }
    }
}

export! {
    fn consort_replies_count(replies: Handle, count: Out<usize>) {
        let count = count.check("count")?;
        REPLIES.with(replies, |it| {
            count.set(it.get().map_or(0, |told| told.all().len()));
            Ok(())
        })
    }

    fn consort_replies_at(replies: Handle, at: usize, reply: Out<Reply>) {
        let reply = reply.check("reply")?;
        REPLIES.with(replies, |it| {
            let all = it.get().map(Told::all).unwrap_or_default();
            let found = all.get(at).ok_or_else(|| Error::invalid(format_args!(
                "there is no reply {at} of {}: count them by consort_replies_count, from 0 on", all.len()
            )))?;
            reply.set(*found);
            Ok(())
        })
    }

    fn consort_replies_free(replies: Handle) {
        REPLIES.take(replies).map(drop)
    }
}
