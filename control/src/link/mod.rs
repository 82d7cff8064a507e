//! Control links: what nodes say to each other about who the members are. One TCP connection for each pair of nodes;
//! messages of the group never travel here.
//!
//! Everything here is pure: bytes and times go in, bytes and wishes (dial, close) come out. The sockets are
//! [`crate::shell`]'s.
//!
//! # On the wire
//! Each side opens with a preamble of 48 bytes, whose form never changes, so that any two releases can tell each other
//! why they don't fit (little-endian):
//! ```text
//!  0       8           10           12        16                               48
//! | magic | least ver. | greatest v. | flags  | nonce, 32 random bytes         |
//! ```
//! Then frames follow: `{ length u32, kind u8, body }`. Kind 0 is a *refusal*, a text that says why the link is not to be,
//! in the clear; its form never changes either. Kind 1 is *sealed*: a message of the agreed protocol version (the
//! greatest that both have) in postcard's encoding, and 32 bytes of tag.
//!
//! # The seal
//! The tag is blake3, keyed by both preambles, with their nonces, and the shared key if one is configured; it covers
//! direction, number and body of the frame. So a valid tag shows that the peer knows the key *now* (the nonce is a
//! challenge, each frame answers it), that nothing was changed, repeated, left out or turned around on the way; and without a
//! shared key it is still a checksum far better than TCP's. The first frame of each side is an empty *proof*; only
//! when the peer's has been checked is anything else said (S3). What the seal does not do is hide: that is TLS's, whose
//! place is between the socket and [`connection`]'s bytes, so that nothing here changes.
//!
//! # What a stranger can cost
//! Before its proof a peer can make this node hold one connection of [`table::STRANGERS`], for [`table::HANDSHAKE`] at
//! most, with buffers of [`frame::STRANGER_LEN`] bytes, and of [`frame::HELLO_LEN`] between its proof and its hello; no length that it names allocates
//! anything. One that has proved itself
//! and isn't known becomes one of [`table::GUESTS`], if membership has nothing against its hello.
//!
//! # Who speaks first
//! Who dialled, says hello when it has seen the other's proof; who listens answers that with its own. Who is no node
//! dials as well, and [asks](message::Message::Ask) instead: it hears the [answer](message::Message::Answer), in pieces if it
//! is long, and nothing else, and the connection is closed. It needs the shared key like anyone.
//!
//! # One link for a pair
//! Both sides dial, so that it doesn't matter who starts first or whose side of a firewall is open. Where two connections
//! come of it, the node with the lower id says [`Message::Use`](message::Message::Use) on one of them, and closes the
//! other: one decides, so they can't choose differently.

pub mod frame;
pub mod message;
pub mod connection;
pub mod table;
