//! Who the members are.
