//! What is left aside in Services, said once for each and not at every change of the Service.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::scheduler::Scheduler;
use crate::view::Name;

/// What can be told of a Service.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Notice {
    /// In its fields and annotations.
    pub(crate) complaints: Box<[Box<str>]>,
    /// External addresses outside the ranges.
    pub(crate) refused: Box<[IpAddr]>,
    /// The scheduler that it asks for, and the one that stands in for it.
    pub(crate) stand_in: Option<(Scheduler, Scheduler)>,
}

/// What has been told.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    told: HashMap<Name, Notice>,
    default: Option<(Scheduler, Scheduler)>,
}

impl Notices {
    /// Tells what is new of a Service.
    pub(crate) fn service(&mut self, name: &Name, notice: Notice) {
        let before = self.told.remove(name).unwrap_or_default();
        for complaint in notice
            .complaints
            .iter()
            .filter(|c| !before.complaints.contains(c))
        {
            tracing::warn!(object.kind = "Service", object.name = %name, reason = %complaint, "left aside");
        }
        if notice.refused != before.refused {
            tell_refused(name, &notice.refused);
        }
        if let Some((wanted, used)) = notice.stand_in.filter(|_| notice.stand_in != before.stand_in) {
            tracing::warn!(
                object.kind = "Service", object.name = %name, scheduler = %wanted, used = %used,
                "this proxy mode has no such scheduler, its nearest is used"
            );
        }
        if notice != Notice::default() {
            self.told.insert(name.clone(), notice);
        }
    }

    /// The Service is gone, and what was told of it with it.
    pub(crate) fn forget(&mut self, name: &Name) {
        self.told.remove(name);
    }

    /// Tells it of the scheduler of all Services that do not name one.
    pub(crate) fn default_scheduler(&mut self, wanted: Scheduler, used: Scheduler) {
        let stand_in = (wanted != used).then_some((wanted, used));
        if stand_in.is_some() && stand_in != self.default {
            tracing::warn!(
                scheduler = %wanted, used = %used,
                "this proxy mode has no such scheduler, its nearest is used (--scheduler)"
            );
        }
        self.default = stand_in;
    }
}

fn tell_refused(name: &Name, refused: &[IpAddr]) {
    if refused.is_empty() {
        tracing::info!(object.kind = "Service", object.name = %name, "external addresses are accepted now");
        return;
    }
    let addresses: Vec<String> = refused.iter().map(ToString::to_string).collect();
    tracing::warn!(
        object.kind = "Service", object.name = %name, addresses = addresses.join(","),
        "externalIPs outside the accepted ranges are left aside (--external-ip-range)"
    );
}
