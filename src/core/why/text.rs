//! The answer to `why` as one paragraph. Names and errors in it come from other devices: whoever
//! prints it escapes them.

use std::time::Duration;

use super::{
    AssetWhy, DeviceWhy, HereReason, NamedDevice, Next, NextStep, RestCause, ThereReason, Unwanted,
};
use crate::core::units::{bytes, duration, utc};

/// The paragraph: how it stands here, how on the other devices, what happens next.
pub(super) fn paragraph(why: &AssetWhy, added_by: Option<&str>) -> String {
    let at_ms = why.at_ms;
    let mut sentences = Vec::new();
    if why.damaged {
        sentences.push("Its bytes on this device are damaged, so it counts as missing.".to_owned());
    }
    sentences.push(here(&why.here, at_ms));
    if matches!(why.here, HereReason::Nowhere { .. })
        && let Some(name) = added_by
    {
        sentences.push(format!("It was added on {name}."));
    }
    sentences.extend(devices(why));
    sentences.extend(why.next.as_ref().map(|next| step(next, at_ms)));
    sentences.join(" ")
}

fn here(reason: &HereReason, at_ms: u64) -> String {
    match reason {
        HereReason::Whole => "It is here and whole.".into(),
        HereReason::Stored => "It has just arrived here.".into(),
        HereReason::Removed => {
            "It is not here: the group removed this device, which syncs with nobody.".into()
        }
        HereReason::NotWanted { because: Unwanted::Expression } => {
            "It is not here: what this device wants leaves it out. `can-sync fetch` brings it."
                .into()
        }
        HereReason::NotWanted { because: Unwanted::Evicted } => {
            "It is not here: its copy here was evicted. `can-sync fetch` brings it back.".into()
        }
        HereReason::StoreDown { error } => {
            format!("It is not here: the store does not answer{}.", colon(error.as_deref()))
        }
        HereReason::StorePaused { until_ms } => format!(
            "It is not here: the store could not take what came last, and nothing is requested until {}.",
            moment(*until_ms, at_ms)
        ),
        HereReason::NoSpace { what, .. } if what.is_empty() => {
            "It is not here: it waits for space.".into()
        }
        HereReason::NoSpace { what, .. } => {
            format!("It is not here: it waits for space. {}.", capital(&what.join("; ")))
        }
        HereReason::Arriving { from, left_bytes, limit_bytes } => {
            let left = left_bytes.map_or(String::new(), |left| format!(", {} left", bytes(left)));
            let limit = limit(*limit_bytes);
            format!("It is not here yet: it is arriving from {}{left}{limit}.", names(from))
        }
        HereReason::Requested { from, at_ms: since_ms, others, left_bytes, limit_bytes } => {
            format!(
                "It is not here yet: it was requested from {} at {}, {}{}.",
                from.name,
                ago(*since_ms, at_ms),
                queue(*others, *left_bytes, "with"),
                limit(*limit_bytes)
            )
        }
        HereReason::Queued { from, ahead, left_bytes, limit_bytes } => format!(
            "It is not here yet: {} it, and it is {}{}.",
            holds(from),
            queue(*ahead, *left_bytes, "behind"),
            limit(*limit_bytes)
        ),
        HereReason::Resting { cause, from, until_ms } => {
            let what = match cause {
                RestCause::WrongBytes => {
                    "had the wrong bytes, or the store refused them, so it is quarantined"
                }
                RestCause::NoSpace => "found no space here, so it rests",
                RestCause::Interrupted => "broke off, so it rests",
            };
            let until = moment(*until_ms, at_ms);
            format!("It is not here: what came from {} {what} until {until}.", names(from))
        }
        HereReason::HolderOffline { device, held_at_ms: Some(held_ms), since_ms } => format!(
            "It is not here: {} had it at {}, and is offline {}; no connected device has it.",
            device.name,
            ago(*held_ms, at_ms),
            since(*since_ms, at_ms)
        ),
        HereReason::HolderOffline { device, held_at_ms: None, since_ms } => format!(
            "It is not here: it was added on {}, which is offline {}, and no connected device has it.",
            device.name,
            since(*since_ms, at_ms)
        ),
        HereReason::Comparing { with } => format!(
            "It is not here: this device and {} are still comparing what they hold.",
            names(with)
        ),
        HereReason::Nowhere { asked, offline } if asked.is_empty() && !offline.is_empty() => {
            "It is not here, and no other device is connected.".into()
        }
        HereReason::Nowhere { asked, offline } if offline.is_empty() => {
            format!("It is not here, and no device of the group has it: {}.", not_having(asked))
        }
        HereReason::Nowhere { asked, .. } => {
            format!("It is not here, and no connected device has it: {}.", not_having(asked))
        }
        HereReason::Alone => "It is not here, and no other device is in the group.".into(),
    }
}

fn not_having(asked: &[NamedDevice]) -> String {
    let does = if asked.len() == 1 { "holds" } else { "hold" };
    format!("{} {does} exactly what this device holds", names(asked))
}

/// A sentence for the devices that have it, then one for each other device that is not yet named.
fn devices(why: &AssetWhy) -> Vec<String> {
    let is_named = |device: &NamedDevice| match &why.here {
        HereReason::Comparing { with } => with.contains(device),
        HereReason::HolderOffline { device: holder, .. } => holder == device,
        HereReason::Nowhere { asked, .. } => asked.contains(device),
        _ => false,
    };
    let of_reason = |wanted: &ThereReason| {
        let found = why.devices.iter().filter(|one| one.reason == *wanted);
        found.map(|one| one.device.clone()).collect::<Vec<_>>()
    };
    let mut sentences = Vec::new();
    let having = of_reason(&ThereReason::Has);
    if !having.is_empty() && !is_shown_as_holders(&why.here) {
        let also = if why.here == HereReason::Whole { " too" } else { "" };
        let has = if having.len() == 1 { "has" } else { "have" };
        sentences.push(format!("{} {has} it{also}.", names(&having)));
    }
    let lacking: Vec<_> =
        of_reason(&ThereReason::Lacks).into_iter().filter(|device| !is_named(device)).collect();
    if !lacking.is_empty() {
        let do_not = if lacking.len() == 1 { "does not" } else { "do not" };
        sentences.push(format!("{} {do_not} have it.", names(&lacking)));
    }
    let others = why.devices.iter().filter(|one| !is_named(&one.device));
    sentences.extend(others.filter_map(|one| there(one, why.at_ms)));
    sentences
}

/// Whether the first sentence has named the devices that hold it.
fn is_shown_as_holders(here: &HereReason) -> bool {
    matches!(
        here,
        HereReason::Arriving { .. } | HereReason::Requested { .. } | HereReason::Queued { .. }
    )
}

fn there(DeviceWhy { device, reason }: &DeviceWhy, at_ms: u64) -> Option<String> {
    let name = &device.name;
    Some(match reason {
        ThereReason::Has | ThereReason::Lacks => return None,
        ThereReason::Sending { limit_bytes } => {
            format!("It is being sent to {name}{}.", limit(*limit_bytes))
        }
        ThereReason::Queued { ahead, ahead_bytes, limit_bytes } => format!(
            "{name} does not have it yet: it is {}{}.",
            queue(*ahead, *ahead_bytes, "behind"),
            limit(*limit_bytes)
        ),
        ThereReason::PutOff { why } => {
            format!("{name} does not have it: it takes no assets for now: {why}.")
        }
        ThereReason::Refused { at_ms: refused_ms, why } => {
            let at = ago(*refused_ms, at_ms);
            format!("{name} does not have it: it refused it at {at}: {why}.")
        }
        ThereReason::Offline { held_at_ms: Some(held_ms), since_ms, error, .. } => format!(
            "{name} had it at {}, and is offline {}{}.",
            ago(*held_ms, at_ms),
            since(*since_ms, at_ms),
            colon(error.as_deref())
        ),
        ThereReason::Offline { held_at_ms: None, since_ms, error, .. } => format!(
            "It is not known whether {name} has it: {name} is offline {}{}.",
            since(*since_ms, at_ms),
            colon(error.as_deref())
        ),
        ThereReason::Comparing { .. } => format!(
            "It is not known whether {name} has it: the two devices are still comparing what they hold."
        ),
    })
}

fn step(next: &Next, at_ms: u64) -> String {
    let name = next.device.as_ref().map_or("", |device| &device.name);
    let when = next.at_ms.map_or(String::new(), |ms| format!(" at {}", moment(ms, at_ms)));
    match next.step {
        NextStep::Transfer => format!("Next: {name} and this device finish the transfer."),
        NextStep::Request if next.at_ms.is_some() => {
            format!("Next: it is requested again{when}, as soon as a device offers it.")
        }
        NextStep::Request => format!("Next: it is requested from {name} when its turn comes."),
        NextStep::Send => format!("Next: it is sent to {name} when its turn comes."),
        NextStep::Dial if next.at_ms.is_none() => format!("Next: {name} is being dialled now."),
        NextStep::Dial => format!("Next: {name} is dialled{when}."),
        NextStep::Compare if next.at_ms.is_none() => {
            format!("Next: {name} and this device compare what they hold.")
        }
        NextStep::Compare => format!("Next: {name} and this device compare what they hold{when}."),
        NextStep::TryStore if next.at_ms.is_none() => {
            "Next: the store is tried again, every few seconds.".into()
        }
        NextStep::TryStore => format!("Next: the store is tried again{when}."),
        NextStep::MakeSpace if next.at_ms.is_none() => {
            "Next: nothing until there is free space; then it is requested again.".into()
        }
        NextStep::MakeSpace => format!("Next: it is tried again{when}; make space before."),
        NextStep::AddFile => {
            "Next: nothing until a device that has it joins, or the file is added again.".into()
        }
    }
}

/// `with 3 others, of which 1.0 GiB are under way`.
fn queue(others: u64, others_bytes: u64, how: &str) -> String {
    if others == 0 && others_bytes == 0 {
        return "next in the queue".into();
    }
    if others == 0 {
        return format!("{how} {} that are under way", bytes(others_bytes));
    }
    let noun = if others == 1 { "other asset" } else { "other assets" };
    match others_bytes {
        0 => format!("{how} {others} {noun} in the queue"),
        _ => format!("{how} {others} {noun} in the queue, {}", bytes(others_bytes)),
    }
}

fn limit(limit_bytes: Option<u64>) -> String {
    let text = |limit| format!("; a rate limit of {}/s is in force", bytes(limit));
    limit_bytes.map_or(String::new(), text)
}

fn colon(text: Option<&str>) -> String {
    text.map_or(String::new(), |text| format!(": {}", text.trim_end_matches('.')))
}

fn names(devices: &[NamedDevice]) -> String {
    let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
    match names[..] {
        [] => "no device".into(),
        [one] => one.into(),
        [ref first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

fn holds(devices: &[NamedDevice]) -> String {
    let hold = if devices.len() == 1 { "holds" } else { "hold" };
    format!("{} {hold}", names(devices))
}

/// A time to come.
fn moment(ms: u64, now_ms: u64) -> String {
    format!("{} (in {})", utc(ms), duration(Duration::from_millis(ms.saturating_sub(now_ms))))
}

/// A time that has passed.
fn ago(ms: u64, now_ms: u64) -> String {
    format!("{} ({} ago)", utc(ms), duration(Duration::from_millis(now_ms.saturating_sub(ms))))
}

fn since(since_ms: Option<u64>, now_ms: u64) -> String {
    match since_ms {
        Some(ms) => format!("since {}", ago(ms, now_ms)),
        None => "since before this agent started".into(),
    }
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + characters.as_str()
}
