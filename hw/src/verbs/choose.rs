//! Which device, port and address a node uses.

use std::sync::Arc;

use crate::gid::{self, Gid, GidKind};

use super::device::{self, Context, Limits, Port};
use super::options::{VerbsError, VerbsOptions};

/// A device, opened, and the way out of it.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) context: Arc<Context>,
    pub(super) limits: Limits,
    pub(super) number: u8,
    pub(super) port: Port,
    pub(super) gid_index: u8,
    pub(super) gid: [u8; 16],
}

/// Chooses as the options say.
pub(super) fn outlet(options: &VerbsOptions) -> Result<Outlet, VerbsError> {
    let names = device::names().map_err(VerbsError::NoRdma)?;
    let found = || if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    if let Some(wanted) = &options.device {
        if !names.contains(wanted) || !device::is_name(wanted) {
            return Err(VerbsError::NoDevice { wanted: wanted.clone(), found: found() });
        }
        return open(wanted, options);
    }
    let own = options.advertise.unwrap_or(options.listen);
    let mut first = None;
    let mut last_error = None;
    for name in &names {
        match open(name, options) {
            Ok(outlet) if gid::address(outlet.gid) == own => return Ok(outlet),
            Ok(outlet) => first = first.or(Some(outlet)),
            Err(error) => last_error = Some(error),
        }
    }
    let none = || VerbsError::NoDevice { wanted: "that carries traffic".to_owned(), found: found() };
    first.ok_or_else(|| last_error.unwrap_or_else(none))
}

fn open(name: &str, options: &VerbsOptions) -> Result<Outlet, VerbsError> {
    let failed = |cause| VerbsError::Open { device: name.to_owned(), cause };
    let context = Arc::new(Context::open(name).map_err(failed)?);
    let limits = context.limits().map_err(failed)?;
    let numbers = match options.port {
        Some(number) => number..=number,
        None => 1..=limits.ports,
    };
    let mut looked = None;
    for number in numbers {
        let port = context.port(number).map_err(failed)?;
        if port.active {
            looked = Some((number, port));
            break;
        }
    }
    let Some((number, port)) = looked else {
        return Err(VerbsError::Port { device: name.to_owned(), port: options.port.unwrap_or(1) });
    };
    let (gid_index, gid) = if port.ethernet {
        address(&context, number, &port, options)?
    } else {
        (0, context.gid(number, 0).unwrap_or_default())
    };
    Ok(Outlet { context, limits, number, port, gid_index, gid })
}

fn address(
    context: &Context,
    number: u8,
    port: &Port,
    options: &VerbsOptions,
) -> Result<(u8, [u8; 16]), VerbsError> {
    let gids = gids(context, number, port);
    let own = options.advertise.unwrap_or(options.listen);
    let choice = gid::choose(&gids, Some(own));
    let wanted = options.gid_index.map(usize::from).or(choice.index);
    let none = |reasons: String| VerbsError::Gid { device: context.name().to_owned(), port: number, reasons };
    let Some(gid) = gids.iter().find(|gid| Some(gid.index) == wanted && gid.bytes != [0; 16]) else {
        let mut reasons = choice.reasons;
        if let Some(index) = options.gid_index {
            reasons.push(format!("GID {index}: asked for, and empty"));
        }
        return Err(none(if reasons.is_empty() { "it has none".to_owned() } else { reasons.join("; ") }));
    };
    for reason in &choice.reasons {
        tracing::debug!(device = context.name(), port = number, "{reason}");
    }
    let index = u8::try_from(gid.index).map_err(|_| none(format!("GID {} is out of range", gid.index)))?;
    Ok((index, gid.bytes))
}

/// The GIDs of a port, the empty left out.
pub(super) fn gids(context: &Context, number: u8, port: &Port) -> Vec<Gid> {
    let read = |index| {
        let bytes = context.gid(number, index).ok().filter(|bytes| *bytes != [0; 16])?;
        let (kind, network_device) = device::gid_attributes(context.name(), number, index);
        let kind = GidKind::read(kind.as_deref(), port.ethernet);
        Some(Gid { index, bytes, kind, network_device })
    };
    (0..port.gids.min(gid::MOST)).filter_map(read).collect()
}
