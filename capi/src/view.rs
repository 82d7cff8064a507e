//! A view as C reads it: structs that point into memory which goes along with them.

use std::ffi::CString;

use consort::Role;

use crate::border::Owned;
use crate::layout::{DATA, Member, Shard, View, WITNESS};

/// A view, and all that its structs point to. Boxed contents don't move when this does.
pub(crate) struct OwnedView {
    view: Owned<Box<View>>,
    _members: Owned<Vec<Member>>,
    _shards: Owned<Vec<Shard>>,
    _texts: Vec<CString>,
    _nodes: Vec<Vec<u32>>,
}

impl OwnedView {
    pub(crate) fn new(view: &consort::View) -> Self {
        let (mut texts, mut nodes) = (Vec::new(), Vec::new());
        let mut text = |it: String| {
            let it = CString::new(it).unwrap_or_default(); // neither addresses nor domains have a zero in them
            let pointer = it.as_ptr();
            texts.push(it);
            pointer
        };
        let members: Vec<Member> = view
            .members
            .iter()
            .map(|member| Member {
                node: member.node.0,
                role: if member.role == Role::Witness { WITNESS } else { DATA },
                incarnation: member.incarnation.0,
                address: text(member.address.to_string()),
                domain: text(member.domain.to_string()),
            })
            .collect();
        let mut list = |all: &[consort::NodeId]| {
            let all: Vec<u32> = all.iter().map(|node| node.0).collect();
            let (pointer, len) = (all.as_ptr(), all.len());
            nodes.push(all);
            (pointer, len)
        };
        let shards: Vec<Shard> = view
            .shards
            .iter()
            .map(|shard| {
                let (members, members_len) = list(&shard.members);
                let (learners, learners_len) = list(&shard.learners);
                let is_lost = u32::from(shard.is_lost());
                Shard {
                    members,
                    members_len,
                    learners,
                    learners_len,
                    since: shard.since.0,
                    is_lost,
                    reserved: 0,
                }
            })
            .collect();
        let view = View {
            id: view.id.0,
            members: members.as_ptr(),
            members_len: members.len(),
            shards: shards.as_ptr(),
            shards_len: shards.len(),
        };
        Self {
            view: Owned(Box::new(view)),
            _members: Owned(members),
            _shards: Owned(shards),
            _texts: texts,
            _nodes: nodes,
        }
    }

    /// Lives as long as this does.
    pub(crate) fn pointer(&self) -> *const View {
        &raw const *self.view.0
    }
}
