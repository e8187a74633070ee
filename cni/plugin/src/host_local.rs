//! The IPAM plugin `host-local`: addresses from ranges of the configuration, leases on this machine.
//!
//! Usable as a program of its own, and by `bridge` without another process. Asking again for the same container and
//! link gives the same addresses, so an ADD that was killed and repeated leaks nothing. Leases lie where and as the
//! reference plugin keeps them, so that a host may change from one to the other while containers run.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni_spec::{AddResult, Attachment, Cidr, Code, Command, Dns, IpConfig, PluginError};
use serde_json::Value;

use crate::config::{Args, IpamConfig, RuntimeConfig};
use crate::{Request, failed};

mod leases;
mod range;

use leases::Leases;
use range::RangeSet;

/// The reference plugin's.
const DATA_DIRECTORY: &str = "/var/lib/cni/networks";
/// Where an earlier version kept them.
const EARLIER_DIRECTORY: &str = "/run/sampan/leases";

#[derive(serde::Deserialize)]
struct Config {
    ipam: IpamConfig,
    #[serde(default, rename = "runtimeConfig")]
    runtime_config: RuntimeConfig,
    #[serde(default)]
    args: Args,
}

struct Plan {
    sets: Vec<RangeSet>,
    config: Config,
    directory: PathBuf,
    owner: Attachment,
}

/// Handles a request.
///
/// # Errors
/// A CNI error object.
pub fn run(request: &Request) -> Result<Value, PluginError> {
    match request.environment.command {
        Command::Add => request.respond(&add(request)?),
        Command::Del => del(request).map(|()| Value::Null),
        Command::Check => check(request).map(|()| Value::Null),
        Command::Status => status(request).map(|()| Value::Null),
        Command::Gc => gc(request).map(|()| Value::Null),
        Command::Version => Ok(Value::Null),
    }
}

/// Leases one address of each range set.
///
/// # Errors
/// Code 7 for a bad configuration, 11 when a range is exhausted or the lock is busy, 5 for the disk.
pub fn add(request: &Request) -> Result<AddResult, PluginError> {
    request.check_args()?;
    let plan = plan(request)?;
    let wanted = plan.requested(request)?;
    let dns = plan.config.ipam.resolv_conf.as_deref().map(read_resolv_conf).transpose()?.unwrap_or_default();
    let mut leases = open(&plan.directory)?;
    let addresses = leases.allocate(&plan.owner, &plan.sets, &wanted).map_err(|error| lease_error(&error))?;
    let ips = addresses.iter().map(|(address, range)| IpConfig {
        interface: None,
        address: Cidr::new(*address, range.subnet.prefix()).unwrap_or(Cidr::host(*address)),
        gateway: range.gateway,
    });
    Ok(AddResult { interfaces: Vec::new(), ips: ips.collect(), routes: plan.config.ipam.routes.clone(), dns })
}

/// Frees what the container's link has; nothing is fine.
///
/// # Errors
/// Codes 5 and 11.
pub fn del(request: &Request) -> Result<(), PluginError> {
    let (directory, owner) = place(request)?;
    if !is_there(&directory) {
        return Ok(());
    }
    open(&directory)?.release(&owner).map_err(|error| lease_error(&error))
}

/// Whether the container's link still has a lease.
///
/// # Errors
/// Code 999 when not.
pub fn check(request: &Request) -> Result<(), PluginError> {
    let plan = plan(request)?;
    let held = open(&plan.directory)?.held_by(&plan.owner).map_err(|error| lease_error(&error))?;
    if held.len() == plan.sets.len() {
        return Ok(());
    }
    let message = format!(
        "{} of {} leases of {} {} are recorded in {}",
        held.len(),
        plan.sets.len(),
        plan.owner.container_id,
        plan.owner.if_name,
        plan.directory.display()
    );
    Err(PluginError::new(Code::Internal, message))
}

/// Whether there is an address left.
///
/// # Errors
/// Code 50 when not.
pub fn status(request: &Request) -> Result<(), PluginError> {
    let plan = plan(request)?;
    if !is_there(&plan.directory) {
        return Ok(());
    }
    let leases = open(&plan.directory)?;
    let taken = leases.taken().map_err(|error| lease_error(&error))?;
    match plan.sets.iter().find(|set| leases::is_exhausted(set, &taken)) {
        None => Ok(()),
        Some(set) => Err(PluginError::new(Code::NotAvailable, format!("no free address in {set}"))),
    }
}

/// Frees what belongs to none of the valid attachments.
///
/// # Errors
/// Codes 5, 7 and 11.
pub fn gc(request: &Request) -> Result<(), PluginError> {
    let valid = request.valid_attachments()?;
    let (directory, _) = place(request)?;
    if !is_there(&directory) {
        return Ok(());
    }
    open(&directory)?.retain(&valid).map_err(|error| lease_error(&error))
}

pub(crate) fn plan_any(request: &Request) -> Result<(), PluginError> {
    let plan = plan(request)?;
    plan.requested(request)?;
    // However many addresses a range has, the next one is found at once.
    let _first: Vec<_> = plan.sets.iter().map(|set| set.candidates(None).next()).collect();
    Ok(())
}

fn place(request: &Request) -> Result<(PathBuf, Attachment), PluginError> {
    let ipam: IpamConfig = request.config_as::<Config>()?.ipam;
    let directory = ipam.data_dir.unwrap_or_else(|| DATA_DIRECTORY.into()).join(&request.name);
    let owner = Attachment {
        container_id: request.environment.container_id.clone(),
        if_name: request.environment.if_name.clone(),
    };
    Ok((directory, owner))
}

fn plan(request: &Request) -> Result<Plan, PluginError> {
    let config: Config = request.config_as()?;
    let (directory, owner) = place(request)?;
    let mut all = config.runtime_config.ip_ranges.clone().unwrap_or_default();
    if config.ipam.single.subnet.is_some() {
        all.insert(0, vec![config.ipam.single.clone()]);
    }
    all.extend(config.ipam.ranges.iter().cloned());
    let sets = range::plan(&all).map_err(|error| failed(Code::InvalidConfig, "ipam", &error))?;
    Ok(Plan { sets, config, directory, owner })
}

impl Plan {
    /// Addresses asked for by `IP=` of `CNI_ARGS`, `args.cni.ips` or `runtimeConfig.ips`.
    fn requested(&self, request: &Request) -> Result<Vec<IpAddr>, PluginError> {
        let from_args = request.environment.arg("IP").map(|list| list.split(',').collect()).unwrap_or_default();
        let lists: [Vec<&str>; 3] = [
            from_args,
            self.config.args.cni.ips.iter().map(String::as_str).collect(),
            self.config.runtime_config.ips.iter().map(String::as_str).collect(),
        ];
        let mut wanted = Vec::new();
        for text in lists.into_iter().flatten().filter(|text| !text.is_empty()) {
            let address = text.split('/').next().unwrap_or(text).parse::<IpAddr>().map_err(|_| {
                PluginError::new(Code::InvalidConfig, format!("the requested address `{text}` is not an IP address"))
            })?;
            if !self.sets.iter().any(|set| set.contains(address)) {
                let message = format!("the requested address {address} is in none of the configured ranges");
                return Err(PluginError::new(Code::InvalidConfig, message));
            }
            wanted.push(address);
        }
        Ok(wanted)
    }
}

/// Whether there may be leases; without, nothing is made for looking.
fn is_there(directory: &Path) -> bool {
    let earlier = directory.strip_prefix(DATA_DIRECTORY).ok().map(|name| Path::new(EARLIER_DIRECTORY).join(name));
    directory.exists() || earlier.is_some_and(|earlier| earlier.exists())
}

fn open(directory: &Path) -> Result<Leases, PluginError> {
    let earlier = directory.strip_prefix(DATA_DIRECTORY).ok().map(|name| Path::new(EARLIER_DIRECTORY).join(name));
    Leases::open(directory, earlier.as_deref()).map_err(|error| lease_error(&error))
}

fn lease_error(error: &leases::LeaseError) -> PluginError {
    use leases::LeaseError as E;
    let code = match error {
        E::Busy { .. } | E::Exhausted { .. } | E::Taken { .. } => Code::TryAgainLater,
        E::Directory { .. } | E::Lock { .. } | E::Read { .. } | E::Write { .. } => Code::Io,
        E::Version { .. } => Code::Decoding,
    };
    failed(code, "leases", error)
}

fn read_resolv_conf(path: &Path) -> Result<Dns, PluginError> {
    let text = fs::read_to_string(path)
        .map_err(|error| failed(Code::Io, &format!("read resolvConf {}", path.display()), &error))?;
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(key) = words.next() else { continue };
        let rest = words.map(str::to_owned);
        match key {
            "nameserver" => dns.nameservers.extend(rest.take(1)),
            "domain" => dns.domain = rest.take(1).collect(),
            "search" => dns.search = rest.collect(),
            "options" => dns.options.extend(rest),
            _ => {}
        }
    }
    Ok(dns)
}
