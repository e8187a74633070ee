//! ADD and DEL of the bridge plugin with host-local addresses, against the plugins that Debian ships.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use crate::Settings;
use crate::container::first_line;
use crate::figure::{Figure, Peer, median};
use crate::process::{Cost, Of, QUANTITIES, cost};

/// Where the usual packages put the plugins.
const PEER_DIRS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// One set of plugins with a network of its own.
#[derive(Debug)]
struct Plugins {
    dir: PathBuf,
    config: PathBuf,
    refusal: Option<String>,
    add: Vec<Cost>,
    del: Vec<Cost>,
}

impl Plugins {
    fn prepare(dir: PathBuf, base: &Path, name: &str, subnet: &str) -> Result<Self> {
        let config = base.join(format!("{name}.json"));
        let document = json!({
            "cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": format!("{name}0"), "isGateway": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "dataDir": base.join("leases"), "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]},
        });
        fs::write(&config, document.to_string())?;
        Ok(Self { dir, config, refusal: None, add: Vec::new(), del: Vec::new() })
    }

    fn call(&self, verb: &str, netns: &File) -> Result<Cost> {
        let mut command = Command::new("/bin/sh");
        // The shell only opens the file and becomes the plugin: `cost` gives every command an empty standard input.
        command.args(["-c", "exec \"$0\" < \"$1\""]).arg(self.dir.join("bridge")).arg(&self.config);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "bench").env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()));
        command.env("CNI_PATH", &self.dir);
        cost(&mut command)
    }

    fn middle(&self, verb: &str, of: Of) -> f64 {
        let costs = if verb == "ADD" { &self.add } else { &self.del };
        median(&costs.iter().map(of).collect::<Vec<_>>())
    }

    fn round(&mut self) -> Result<()> {
        let netns = new_network_namespace()?;
        let add = self.call("ADD", &netns)?;
        let del = self.call("DEL", &netns)?;
        self.add.push(add);
        self.del.push(del);
        Ok(())
    }
}

pub(crate) fn measure(settings: &Settings) -> Result<Vec<Figure>> {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
    let base = tempfile::Builder::new().prefix("sampan-bench-").tempdir()?;
    let own_dir = base.path().join("plugins");
    fs::create_dir(&own_dir)?;
    for name in ["bridge", "host-local"] {
        symlink(settings.dist.join("sampan-cni"), own_dir.join(name))?;
    }
    let mut own = Plugins::prepare(own_dir, base.path(), "own", "10.201.0.0/16")?;
    let peer_dir = PEER_DIRS.iter().find(|dir| Path::new(dir).join("bridge").is_file());
    let mut peer =
        peer_dir.map(|dir| Plugins::prepare(PathBuf::from(dir), base.path(), "peer", "10.202.0.0/16")).transpose()?;
    for _ in 0..settings.rounds {
        own.round()?;
        if let Some(peer) = peer.as_mut().filter(|peer| peer.refusal.is_none())
            && let Err(why) = peer.round()
        {
            peer.refusal = Some(first_line(&why));
        }
    }
    let mut figures = Vec::new();
    for verb in ["ADD", "DEL"] {
        for (kind, of) in QUANTITIES {
            let middle = |plugins: &Plugins| plugins.middle(verb, of);
            let mut figure = Figure::new(format!("CNI {verb}, {kind}"), middle(&own), "ms");
            let value = match &peer {
                None => Err("not installed (Debian package containernetworking-plugins)".to_owned()),
                Some(Plugins { refusal: Some(why), .. }) => Err(why.clone()),
                Some(plugins) => Ok(middle(plugins)),
            };
            figure.peers.push(Peer { name: "CNI plugins".to_owned(), value });
            figures.push(figure);
        }
    }
    Ok(figures)
}

/// Lives as long as the file is open.
fn new_network_namespace() -> Result<File> {
    let open = || -> Result<File> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
        File::open("/proc/thread-self/ns/net").context("open a network namespace")
    };
    let made = std::thread::scope(|scope| scope.spawn(open).join());
    made.ok().context("the thread that makes a network namespace panicked")?
}
