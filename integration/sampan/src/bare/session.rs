//! A connection to the container runtime, started if need be, and containers found by what a person calls them.

use anyhow::{Context, Result, bail};
use runtime_cri_api::v1;
use runtime_cri_api::v1::image_service_client::ImageServiceClient;
use runtime_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::Channel;

use super::NAMESPACE;
use crate::daemon;
use crate::endpoint;
use crate::host;
use crate::instance::Layout;
use crate::report::say;

/// Label of the pod, and of its container, that `run` gave a name.
pub(super) const NAME_LABEL: &str = "sampan.dev/name";

#[derive(Debug)]
pub(super) struct Session {
    pub layout: Layout,
    channel: Channel,
}

impl Session {
    pub(super) async fn open(layout: &Layout) -> Result<Self> {
        if let Ok(channel) = endpoint::connect(&layout.cri_socket()).await {
            return Ok(Self { layout: layout.clone(), channel });
        }
        if daemon::running(layout)?.is_none() {
            host::check()?;
            layout.create().context("make the instance's directories")?;
            daemon::start(layout, &["cri", "--detached"], |name, _| say(name))?;
        }
        let channel = endpoint::connect(&layout.cri_socket()).await?;
        Ok(Self { layout: layout.clone(), channel })
    }

    /// Like [`Self::open`], but nothing is started for somebody who only looks: `None` where nothing was ever made.
    pub(super) async fn look(layout: &Layout) -> Result<Option<Self>> {
        if !layout.data.exists() && daemon::running(layout)?.is_none() {
            return Ok(None);
        }
        Self::open(layout).await.map(Some)
    }

    pub(super) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
    }

    pub(super) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }

    pub(super) async fn containers(&self) -> Result<Vec<v1::Container>> {
        let request = v1::ListContainersRequest::default();
        let listed = self.runtime().list_containers(request).await.map_err(said).context("list containers")?;
        Ok(listed.into_inner().containers)
    }

    /// By the name that `run` gave, by `pod/container`, or by the beginning of an id.
    pub(super) async fn find(&self, wanted: &str) -> Result<v1::Container> {
        let containers = self.containers().await?;
        let found: Vec<v1::Container> = match_name(containers, wanted);
        match <[v1::Container; 1]>::try_from(found) {
            Ok([only]) => Ok(only),
            Err(none) if none.is_empty() => bail!("there is no container {wanted}; `sampan ps -a` lists all of them"),
            Err(several) => {
                let ids: Vec<&str> =
                    several.iter().map(|container| container.id.get(..12).unwrap_or(&container.id)).collect();
                bail!("{wanted} means several containers: {}; give more of the id", ids.join(", "))
            }
        }
    }

    pub(super) async fn status(&self, id: &str) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime().container_status(request).await.map_err(said)?;
        answer.into_inner().status.context("the container runtime answered without a status")
    }

    /// Waits until the container has ended; its exit code.
    pub(super) async fn wait(&self, id: &str) -> Result<i32> {
        // Subscribed before the state is asked for, so that no end falls between the two.
        let mut events = self.runtime().get_container_events(v1::GetEventsRequest {}).await.map_err(said)?.into_inner();
        loop {
            let status = self.status(id).await?;
            if status.state() == v1::ContainerState::ContainerExited {
                return Ok(status.exit_code);
            }
            loop {
                let event = events.message().await.map_err(said).context("wait for the container's end")?;
                let event = event.context("the container runtime ended; the container goes on")?;
                if event.container_id == id {
                    break;
                }
            }
        }
    }
}

/// What the server said, without gRPC's wrapping. A status that has a cause is not the server's but the connection's.
#[expect(clippy::needless_pass_by_value, reason = "reads as `map_err(said)`")]
pub(super) fn said(status: tonic::Status) -> anyhow::Error {
    if std::error::Error::source(&status).is_some() {
        return anyhow::anyhow!(
            "the container runtime does not answer: {}; `sampan status` shows how it does",
            status.message()
        );
    }
    anyhow::anyhow!("{}", status.message())
}

pub(super) fn name_of(container: &v1::Container) -> String {
    let label = |key: &str| container.labels.get(key).cloned();
    label(NAME_LABEL).unwrap_or_else(|| {
        let pod = label("io.kubernetes.pod.name").unwrap_or_default();
        let own = container.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
        if pod.is_empty() { own } else { format!("{pod}/{own}") }
    })
}

fn match_name(containers: Vec<v1::Container>, wanted: &str) -> Vec<v1::Container> {
    let (named, others): (Vec<_>, Vec<_>) = containers.into_iter().partition(|container| name_of(container) == wanted);
    if !named.is_empty() {
        // Of several tries of one Kubernetes container, the last is meant.
        let attempt = |container: &v1::Container| container.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
        return named.into_iter().max_by_key(attempt).into_iter().collect();
    }
    others.into_iter().filter(|container| !wanted.is_empty() && container.id.starts_with(wanted)).collect()
}

/// Whether `run` made it.
pub(super) fn is_bare(container: &v1::Container) -> bool {
    container.labels.get("io.kubernetes.pod.namespace").is_some_and(|namespace| namespace == NAMESPACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_by_name_then_by_id() {
        let container = |id: &str, name: &str| v1::Container {
            id: id.into(),
            labels: [(NAME_LABEL.to_owned(), name.to_owned())].into(),
            ..v1::Container::default()
        };
        let check = |wanted: &str, expect: &[&str]| {
            let all = vec![container("ab1", "web"), container("ab2", "db"), container("web9", "x")];
            let ids: Vec<String> = match_name(all, wanted).into_iter().map(|container| container.id).collect();
            assert_eq!(ids, expect, "{wanted}");
        };
        check("web", &["ab1"]);
        check("ab", &["ab1", "ab2"]);
        check("web9", &["web9"]);
        check("none", &[]);
        check("", &[]);
    }
}
