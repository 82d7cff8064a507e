//! What a node answers who asks how it stands (V11): as JSON, with the same words as everywhere. Answered by the control thread from
//! what it knows, so that a node whose engine is stuck answers too, and says since when it is.

use std::time::Duration;

use consort_dataplane::names::{NodeId, Time};
use serde_json::{Value, json};

use super::{Lost, Membership, Phase};
use crate::link::message::Question;
use crate::orders::SessionState;
use crate::view::{Role, Shard, ShardId, View};

/// An engine that has not been heard of for so long is worth a word.
const STUCK: Duration = Duration::from_secs(1);

impl Membership {
    /// The answer, as JSON text.
    pub fn answer(&self, now: Time, question: Question) -> String {
        match question {
            Question::Status => self.status(now),
            Question::Explain => json!({ "node": self.terms.me.0, "reasons": self.reasons(now) }),
        }
        .to_string()
    }

    fn status(&self, now: Time) -> Value {
        let waiting: Vec<_> = self.absent().iter().map(ToString::to_string).collect();
        json!({
            "cluster": self.terms.cluster,
            "node": self.terms.me.0,
            "incarnation": self.incarnation.to_string(),
            "role": role(self.role),
            "phase": self.phase.to_string(),
            "fabric": self.terms.fabric,
            "guarantee": self.terms.guarantee,
            "view": self.view().map(|view| self.view_status(view)),
            "joining": self.joiners.keys().map(|node| node.0).collect::<Vec<_>>(),
            "learning": self.learned().map(|(shard, (source, pieces, caught_up))| {
                json!({ "shard": self.terms.name(shard), "from": source.0, "pieces": pieces, "caught_up": caught_up })
            }).collect::<Vec<_>>(),
            "teaching": self.teaching.keys().map(|(shard, node)| {
                json!({ "shard": self.terms.name(*shard), "node": node.0 })
            }).collect::<Vec<_>>(),
            "leaving": self.leaving.iter().map(|node| node.0).collect::<Vec<_>>(),
            "waiting": waiting,
            "lost": self.lost().map(|lost| lost_status(lost, now)).collect::<Vec<_>>(),
            "engine_heard_ms": self.pulsed.map(|at| millis(now.since(at))),
            "sessions": self.sessions.iter().map(|it| session(self.terms.name(it.shard), it)).collect::<Vec<_>>(),
        })
    }

    fn view_status(&self, view: &View) -> Value {
        let members: Vec<_> = view
            .members
            .iter()
            .map(|member| {
                let me = member.node == self.terms.me;
                let beats = self.detection.beats().get(&member.node).copied().unwrap_or_default();
                json!({
                    "node": member.node.0,
                    "incarnation": member.incarnation.to_string(),
                    "address": member.address.to_string(),
                    "role": role(member.role),
                    "fabric": self.links.carrier(member.node),
                    "reached": me || self.reaches(member.node),
                    "suspected": self.change.as_ref().is_some_and(|it| it.suspects().contains(&member.node)),
                    "engine_still_ms": millis(beats.still),
                })
            })
            .collect();
        let (voters, majority) = (view.members.len(), view.majority());
        json!({
            "view": view.id.0,
            "members": members,
            "shards": view.shards().map(|(id, shard)| self.shard_status(id, shard)).collect::<Vec<_>>(),
            "majority": majority,
            // Together; one after the other more can go, as long as the view changes in between.
            "may_lose_at_once": voters - majority,
        })
    }

    /// Who has a shard.
    fn shard_status(&self, id: ShardId, shard: &Shard) -> Value {
        let nodes = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect::<Vec<_>>();
        json!({
            "shard": self.terms.name(id),
            "members": nodes(&shard.members),
            "learners": nodes(&shard.learners),
            "since": shard.since.0,
            "lost": shard.is_lost(),
        })
    }

    /// What this node learns from whom.
    fn learned(&self) -> impl Iterator<Item = (ShardId, (NodeId, u64, bool))> {
        self.learning.iter().filter_map(|(shard, learning)| Some((*shard, learning.standing()?)))
    }

    fn reaches(&self, node: NodeId) -> bool {
        let said = self.peers.get(&node).and_then(|peer| peer.hello.as_ref()).map(|hello| hello.incarnation);
        said.is_some() && said == self.incarnation_of(node)
    }

    /// What keeps the next view, or the next message, from coming: by member, counter and clause.
    fn reasons(&self, now: Time) -> Vec<Value> {
        let mut reasons = Vec::new();
        let mut reason = |clause: &str, what: String| reasons.push(json!({ "clause": clause, "what": what }));
        for absent in self.absent() {
            reason("V1", format!("the group's start waits for {absent}"));
        }
        match &self.phase {
            Phase::Changing(view, phase) => {
                reason("V2", format!("view {} has ended, and the next is being decided: {phase}", view.id));
                let unreached: Vec<_> = view
                    .nodes()
                    .into_iter()
                    .filter(|node| *node != self.terms.me && !self.reaches(*node))
                    .map(|node| node.0)
                    .collect();
                if view.members.len() - unreached.len() < view.majority() {
                    let needed = view.majority();
                    reason(
                        "V1",
                        format!(
                            "a majority is {needed} of {}, and nodes {unreached:?} can't be reached",
                            view.members.len()
                        ),
                    );
                }
            }
            Phase::Joining(_) | Phase::Renewing { .. } => {
                reason("V7", format!("this node is {}", self.phase));
            }
            Phase::Stopped(why) => reason("V5", why.to_string()),
            _ => {}
        }
        for (id, shard) in self.view().into_iter().flat_map(View::shards).filter(|(_, it)| it.is_lost()) {
            let what = format!("{}: all its members were lost, and its state with them", self.terms.name(id));
            reason("V7", format!("{what}; nobody can take part in it (since view {})", shard.since));
        }
        for (shard, (source, pieces, caught_up)) in self.learned() {
            if !caught_up {
                let what = format!(
                    "{}: it catches up with node {source}: {pieces} pieces of the state are here",
                    self.terms.name(shard)
                );
                reason("V7", what);
            }
        }
        if let Some(still) = self.pulsed.map(|at| now.since(at)).filter(|still| *still >= STUCK) {
            reason(
                "V9",
                format!("this node's engine was last heard {still:?} ago: a callback that does not return?"),
            );
        }
        for (node, beats) in self.detection.beats() {
            if beats.still >= STUCK {
                let still = beats.still;
                reason(
                    "V9",
                    format!(
                        "the engine of node {node} has stood still for {still:?} although its process lives"
                    ),
                );
            }
        }
        for ((shard, node), beats) in self.detection.takes() {
            if beats.still >= STUCK && self.detection.engine_still(*node) < STUCK {
                let (group, still) = (self.terms.name(*shard), beats.still);
                reason(
                    "V9",
                    format!(
                        "the application of node {node} has taken nothing of {group} for {still:?}, though something waits"
                    ),
                );
            }
        }
        for session in &self.sessions {
            if let Some(blocked) = session.blocked.as_ref().filter(|_| !session.wedged) {
                let (shard, view) = (session.shard, session.view);
                let which = if shard == ShardId::MAIN {
                    String::new()
                } else {
                    format!("{}, ", self.terms.name(shard))
                };
                reason(blocked.clause, format!("{which}in view {view}, {blocked}"));
            }
        }
        reasons
    }
}

fn lost_status(lost: &Lost, now: Time) -> Value {
    json!({
        "node": lost.node.0,
        "incarnation": lost.incarnation.to_string(),
        "why": lost.why,
        "ago_ms": millis(now.since(lost.at)),
    })
}

fn session(shard: &str, session: &SessionState) -> Value {
    let senders: Vec<_> = session
        .frontiers
        .senders
        .iter()
        .map(|sender| {
            json!({
                "node": sender.node.0,
                "promise": sender.promise.0,
                "received": sender.received.0,
                "stable": sender.stable.0,
                "delivered": sender.delivered.0,
                "released": sender.released.0,
            })
        })
        .collect();
    json!({
        "shard": shard,
        "view": session.view.0,
        "wedged": session.wedged,
        "delivered": session.frontiers.delivered.0,
        "ring_bytes": session.frontiers.ring_bytes,
        "senders": senders,
        "blocked": session.blocked.as_ref().map(ToString::to_string),
        "digests": session.digests.iter().map(|(node, word)| {
            json!({ "node": node.0, "word": format!("{word:#018x}") })
        }).collect::<Vec<_>>(),
    })
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Data => "data",
        Role::Witness => "witness",
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
