//! Calls: updates of which every member's reply is wanted ([`Replica::update_all`](super::Replica::update_all)), as the member sees them that sent them.
//!
//! A call is called by its place in the order, which all members know when they apply it. It is over when every member of the shard, in
//! the view in which it was delivered, has answered or is gone. A reply comes as a message of the group, so nothing of it is lost while
//! who answers and who is answered go on, also over changes of the view.
//!
//! - An answer counts only from the life of a node that was in that view: places are the same again in a group that is founded anew, lives
//!   are not.
//! - Who isn't in the shard any more, or is another life, will not answer: it is lost to the call with the view that says so, before any
//!   message of that view.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::pending::Promise;
use super::value::{Undecodable, Value};
use crate::{Incarnation, NodeId, Seq, ShardId, View, ViewId};

/// How many calls of one member may be under way. So many replies to it wait at each other member at most.
pub(super) const CALLS: usize = 64;

/// What the members of a shard answered to an update ([`Replica::update_all`](super::Replica::update_all)). Together these are all who were members in the view in which it
/// was delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Replies<R> {
    /// What each answered, this node among them, by node.
    pub replies: Vec<(NodeId, R)>,
    /// Whose reply will not come, by node, and why.
    pub lost: Vec<(NodeId, Lost)>,
}

/// Why a member's reply will not come.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// It was gone, from the view or from the shard, before its reply was here. Whether it applied the update before, nobody knows.
    #[error("it was gone from the shard before its reply came")]
    Gone,
    /// It has one that can't be sent, or couldn't read the update.
    #[error("its reply can't be sent: {0}")]
    Unsaid(String),
    /// What it sent is no reply.
    #[error("its reply can't be read: {0}")]
    Unreadable(Undecodable),
}

/// Of which call, and by whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Head {
    view: u64,
    seq: u64,
    /// In which of its lives the member answers.
    life: u64,
    /// What follows is the reply; else it is why there is none.
    is_said: bool,
}

impl Head {
    /// Of the call at that place, by that life of a member.
    pub(super) fn new((view, seq): (ViewId, Seq), life: Incarnation) -> Self {
        Self { view: view.0, seq: seq.0, life: life.0, is_said: false }
    }

    /// The place of the call.
    pub(super) fn place(&self) -> (ViewId, Seq) {
        (ViewId(self.view), Seq(self.seq))
    }

    /// Of an answer's bytes, and the rest of them.
    pub(super) fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        postcard::take_from_bytes(bytes).ok()
    }

    /// An answer's bytes, after what `bytes` begins with.
    pub(super) fn say(self, mut bytes: Vec<u8>, reply: Result<&impl Value, &Undecodable>) -> Vec<u8> {
        let begin = bytes.len();
        let said = reply.map_err(Undecodable::to_string).and_then(|reply| {
            Self { is_said: true, ..self }.put(&mut bytes);
            reply.encode(&mut bytes).map_err(|why| why.to_string())
        });
        if let Err(why) = said {
            bytes.truncate(begin);
            bytes = self.excuse(bytes, &why);
        }
        bytes
    }

    /// As [`Head::say`], with why there is no reply.
    pub(super) fn excuse(self, mut bytes: Vec<u8>, why: &str) -> Vec<u8> {
        self.put(&mut bytes);
        bytes.extend_from_slice(why.as_bytes());
        bytes
    }

    fn put(&self, bytes: &mut Vec<u8>) {
        let _ = self.encode(bytes); // numbers have a form
    }

    /// What follows it.
    pub(super) fn read<R: Value>(&self, rest: &[u8]) -> Result<R, Lost> {
        match self.is_said {
            true => R::decode(rest).map_err(Lost::Unreadable),
            false => Err(Lost::Unsaid(String::from_utf8_lossy(rest).into_owned())),
        }
    }
}

type Told<R, E> = Promise<Result<Replies<R>, E>>;

/// A call that was delivered here.
struct Call<R, E> {
    told: Told<R, E>,
    /// Who has not answered yet, in which life.
    missing: BTreeMap<NodeId, Incarnation>,
    answers: BTreeMap<NodeId, Result<R, Lost>>,
}

/// A call that is over. Whoever waits is told when nothing is locked.
#[must_use = "who waits waits for ever unless told"]
pub(super) struct Over<R, E>(Call<R, E>);

impl<R, E> Over<R, E> {
    pub(super) fn tell(self) {
        let Call { told, answers, .. } = self.0;
        let (mut replies, mut lost) = (Vec::new(), Vec::new());
        for (node, answer) in answers {
            match answer {
                Ok(reply) => replies.push((node, reply)),
                Err(why) => lost.push((node, why)),
            }
        }
        told.keep(Ok(Replies { replies, lost }));
    }
}

/// This member's calls that were delivered and are not over.
pub(super) struct Calls<R, E>(BTreeMap<(ViewId, Seq), Call<R, E>>);

impl<R, E> Default for Calls<R, E> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<R, E> Calls<R, E> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// One was delivered, at that place in `view`, and answered here.
    pub(super) fn begin(
        &mut self,
        place: (ViewId, Seq),
        (me, reply): (NodeId, R),
        (view, shard): (Option<&View>, ShardId),
        told: Told<R, E>,
    ) -> Option<Over<R, E>> {
        let mut missing = view.map(|view| lives(view, shard)).unwrap_or_default();
        missing.remove(&me);
        self.0.insert(place, Call { told, missing, answers: BTreeMap::from([(me, Ok(reply))]) });
        self.over(place)
    }

    /// Whether that life of a node has still to answer to this call.
    pub(super) fn is_awaited(&self, node: NodeId, head: &Head) -> bool {
        let call = self.0.get(&head.place());
        call.and_then(|call| call.missing.get(&node)).is_some_and(|life| life.0 == head.life)
    }

    /// A node has answered; it [was awaited](Calls::is_awaited).
    pub(super) fn on_answer(
        &mut self,
        node: NodeId,
        head: &Head,
        answer: Result<R, Lost>,
    ) -> Option<Over<R, E>> {
        let call = self.0.get_mut(&head.place())?;
        call.missing.remove(&node);
        call.answers.insert(node, answer);
        self.over(head.place())
    }

    /// A view begins, and some will answer no more.
    pub(super) fn on_view(&mut self, view: &View, shard: ShardId) -> Vec<Over<R, E>> {
        let there = lives(view, shard);
        for call in self.0.values_mut() {
            let answers = &mut call.answers;
            call.missing.retain(|node, life| {
                let goes_on = there.get(node) == Some(life);
                if !goes_on {
                    answers.insert(*node, Err(Lost::Gone));
                }
                goes_on
            });
        }
        let places: Vec<_> = self.0.keys().copied().collect();
        places.into_iter().filter_map(|place| self.over(place)).collect()
    }

    /// All who wait, for whom it is over.
    pub(super) fn give_up(self) -> impl Iterator<Item = Told<R, E>> {
        self.0.into_values().map(|call| call.told)
    }

    fn over(&mut self, place: (ViewId, Seq)) -> Option<Over<R, E>> {
        let is_over = self.0.get(&place)?.missing.is_empty();
        if is_over { self.0.remove(&place).map(Over) } else { None }
    }
}

/// The members of a shard, and in which of their lives.
pub(super) fn lives(view: &View, shard: ShardId) -> BTreeMap<NodeId, Incarnation> {
    let members = view.shard(shard).map(|shard| &shard.members[..]).unwrap_or_default();
    members.iter().filter_map(|node| Some((*node, view.member(*node)?.incarnation))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Domain, Member, Role, Shard};

    type Told = Result<Replies<u64>, &'static str>;

    const PLACE: (ViewId, Seq) = (ViewId(4), Seq(9));

    /// These lives of nodes; the shard is of those in `members`.
    fn view(lives: &[(u32, u64)], members: &[u32]) -> View {
        let member = |(node, life): &(u32, u64)| Member {
            node: NodeId(*node),
            incarnation: Incarnation(*life),
            address: ([127, 0, 0, 1], 7100).into(),
            role: Role::Data,
            domain: Domain::default(),
        };
        let members = members.iter().copied().map(NodeId).collect();
        let shards = vec![Shard { members, ..Shard::default() }];
        View { id: ViewId(4), members: lives.iter().map(member).collect(), shards }
    }

    fn begun() -> (Calls<u64, &'static str>, super::super::Pending<Told>) {
        let (mut calls, (told, pending)) = (Calls::default(), Promise::new());
        let view = view(&[(1, 10), (2, 20), (3, 30), (4, 40)], &[1, 2, 3]);
        let over = calls.begin(PLACE, (NodeId(1), 7), (Some(&view), ShardId::MAIN), told);
        assert!(over.is_none() && calls.len() == 1, "two others have not answered");
        (calls, pending)
    }

    #[test]
    fn only_the_lives_that_were_there_are_awaited_and_once() {
        let (mut calls, pending) = begun();
        let of = |place, life| Head::new(place, Incarnation(life));
        assert!(calls.is_awaited(NodeId(2), &of(PLACE, 20)));
        assert!(!calls.is_awaited(NodeId(2), &of(PLACE, 21)), "another life");
        assert!(!calls.is_awaited(NodeId(2), &of((ViewId(4), Seq(8)), 20)), "another call");
        assert!(!calls.is_awaited(NodeId(4), &of(PLACE, 40)), "of the view, not of the shard");
        assert!(calls.on_answer(NodeId(2), &of(PLACE, 20), Ok(8)).is_none());
        assert!(!calls.is_awaited(NodeId(2), &of(PLACE, 20)), "it has answered");
        calls.on_answer(NodeId(3), &of(PLACE, 30), Ok(9)).unwrap().tell();
        let replies = vec![(NodeId(1), 7), (NodeId(2), 8), (NodeId(3), 9)];
        assert_eq!(pending.wait(), Ok(Replies { replies, lost: vec![] }));
        assert_eq!(calls.len(), 0);
    }

    #[test]
    fn who_comes_again_or_loses_the_shard_is_lost() {
        let (mut calls, pending) = begun();
        let same = view(&[(1, 10), (2, 20), (3, 30)], &[1, 2, 3]);
        assert!(calls.on_view(&same, ShardId::MAIN).is_empty());
        // 2 was left out and came again; 3 is there, and has given its place to 4.
        let next = view(&[(1, 10), (2, 21), (3, 30), (4, 40)], &[1, 2, 4]);
        calls.on_view(&next, ShardId::MAIN).into_iter().for_each(Over::tell);
        let lost = vec![(NodeId(2), Lost::Gone), (NodeId(3), Lost::Gone)];
        assert_eq!(pending.wait(), Ok(Replies { replies: vec![(NodeId(1), 7)], lost }));
    }

    #[test]
    fn an_answer_is_a_reply_or_says_why_there_is_none() {
        let read =
            |bytes: &[u8]| Head::split(&bytes[1..]).map(|(head, rest)| (head.place(), head.read(rest)));
        let head = Head::new(PLACE, Incarnation(3));
        assert_eq!(read(&head.say(vec![2], Ok(&70_u64))), Some((PLACE, Ok(70))));
        let why = Undecodable::of::<u64>(3, &"it is odd");
        let bytes = head.say(vec![2], Err::<&u64, _>(&why));
        assert_eq!(read(&bytes), Some((PLACE, Err::<u64, _>(Lost::Unsaid(why.to_string())))));
        let mut bytes = head.say(vec![2], Ok(&70_u64));
        bytes.push(1); // from another version of the program
        assert!(matches!(read(&bytes), Some((PLACE, Err::<u64, _>(Lost::Unreadable(_))))));
        assert_eq!(Head::split(&[1]), None);
    }
}
