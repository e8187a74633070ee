//! RuntimeService: each RPC handed to its file. No work is done here.

use std::pin::Pin;

use futures::Stream;
use runtime_cri_api::v1::runtime_service_server::RuntimeService;
use runtime_cri_api::v1::*;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status};

use super::{Server, pieces};
use crate::runtime::{configuration, status as status_of_runtime};
use crate::status::Error;
use crate::{container, sandbox, streaming};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl RuntimeService for Server {
    async fn version(&self, request: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        self.answer(request, |_node, _request| Ok(status_of_runtime::version()))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<RunPodSandboxRequest>,
    ) -> Result<Response<RunPodSandboxResponse>, Status> {
        let answer = sandbox::run::run(self.node(), request.into_inner()).await;
        self.told("run_pod_sandbox", answer)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Result<Response<StopPodSandboxResponse>, Status> {
        self.work(request, |node, request| sandbox::stop::run(node, &request)).await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Result<Response<RemovePodSandboxResponse>, Status> {
        self.work(request, |node, request| sandbox::remove::run(node, &request)).await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Result<Response<PodSandboxStatusResponse>, Status> {
        if request.get_ref().verbose {
            return self.work(request, |node, request| sandbox::status::run(node, &request)).await;
        }
        self.answer(request, |node, request| sandbox::status::run(node, &request))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        self.answer(request, |node, request| {
            Ok(ListPodSandboxResponse { items: sandbox::list::run(node, request.filter) })
        })
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let answer = container::create::run(self.node(), request.into_inner()).await;
        self.told("create_container", answer)
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Result<Response<StartContainerResponse>, Status> {
        self.work(request, |node, request| container::start::run(node, &request)).await
    }

    async fn stop_container(
        &self,
        request: Request<StopContainerRequest>,
    ) -> Result<Response<StopContainerResponse>, Status> {
        let answer = container::stop::run(self.node(), request.into_inner()).await;
        self.told("stop_container", answer)
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Result<Response<RemoveContainerResponse>, Status> {
        self.work(request, |node, request| container::remove::run(node, &request)).await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        self.answer(request, |node, request| {
            Ok(ListContainersResponse { containers: container::list::run(node, request.filter) })
        })
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        if request.get_ref().verbose {
            return self.work(request, |node, request| container::status::run(node, &request)).await;
        }
        self.answer(request, |node, request| container::status::run(node, &request))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Result<Response<UpdateContainerResourcesResponse>, Status> {
        self.work(request, container::update_resources::run).await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Result<Response<ReopenContainerLogResponse>, Status> {
        self.work(request, |node, request| container::reopen_log::run(node, &request)).await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Result<Response<ExecResponse>, Status> {
        self.answer(request, |node, request| Ok(ExecResponse { url: streaming::exec(node, request)? }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachResponse>, Status> {
        self.answer(request, |node, request| Ok(AttachResponse { url: streaming::attach(node, &request)? }))
    }

    async fn port_forward(
        &self,
        request: Request<PortForwardRequest>,
    ) -> Result<Response<PortForwardResponse>, Status> {
        self.answer(request, |node, request| Ok(PortForwardResponse { url: streaming::port_forward(node, &request)? }))
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Result<Response<ContainerStatsResponse>, Status> {
        self.work(request, |node, request| {
            Ok(ContainerStatsResponse { stats: Some(container::stats::one(node, &request.container_id)?) })
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Result<Response<ListContainerStatsResponse>, Status> {
        self.work(request, |node, request| {
            Ok(ListContainerStatsResponse { stats: container::stats::list(node, request.filter) })
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Result<Response<PodSandboxStatsResponse>, Status> {
        self.work(request, |node, request| {
            Ok(PodSandboxStatsResponse { stats: Some(sandbox::stats::one(node, &request.pod_sandbox_id)?) })
        })
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Result<Response<ListPodSandboxStatsResponse>, Status> {
        self.work(request, |node, request| {
            Ok(ListPodSandboxStatsResponse { stats: sandbox::stats::list(node, request.filter) })
        })
        .await
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Result<Response<UpdateRuntimeConfigResponse>, Status> {
        self.work(request, |node, request| configuration::update(node, request)).await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.work(request, |node, request| Ok(status_of_runtime::run(node, &request))).await
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<ListMetricDescriptorsRequest>,
    ) -> Result<Response<ListMetricDescriptorsResponse>, Status> {
        self.answer(request, |_node, _request| {
            Ok(ListMetricDescriptorsResponse { descriptors: sandbox::stats::descriptors() })
        })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<ListPodSandboxMetricsRequest>,
    ) -> Result<Response<ListPodSandboxMetricsResponse>, Status> {
        self.work(request, |node, _request| {
            Ok(ListPodSandboxMetricsResponse { pod_metrics: sandbox::stats::metrics(node) })
        })
        .await
    }

    async fn runtime_config(
        &self,
        request: Request<RuntimeConfigRequest>,
    ) -> Result<Response<RuntimeConfigResponse>, Status> {
        self.answer(request, |_node, _request| Ok(configuration::get()))
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<UpdatePodSandboxResourcesResponse>, Status> {
        self.work(request, sandbox::update_resources::run).await
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Result<Response<CheckpointContainerResponse>, Status> {
        self.answer(request, |_node, _request| Err(Error::Unimplemented("checkpointing containers")))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Result<Response<ExecSyncResponse>, Status> {
        let answer = container::exec_sync::run(self.node(), request.into_inner()).await;
        self.told("exec_sync", answer)
    }

    type GetContainerEventsStream = Answers<ContainerEventResponse>;

    async fn get_container_events(
        &self,
        _request: Request<GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        // A subscriber that lagged has missed something: the end of the stream makes it list anew.
        let events = BroadcastStream::new(self.node().events.subscribe())
            .map(|event| event.map_err(|lag| Status::data_loss(format!("events were lost: {lag}; list again"))));
        Ok(Response::new(Box::pin(events)))
    }

    type StreamPodSandboxesStream = Answers<StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Result<Response<Self::StreamPodSandboxesStream>, Status> {
        let all = sandbox::list::run(&self.node(), request.into_inner().filter);
        Ok(Response::new(pieces(all, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes })))
    }

    type StreamContainersStream = Answers<StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Result<Response<Self::StreamContainersStream>, Status> {
        let all = container::list::run(&self.node(), request.into_inner().filter);
        Ok(Response::new(pieces(all, |containers| StreamContainersResponse { containers })))
    }

    type StreamContainerStatsStream = Answers<StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Result<Response<Self::StreamContainerStatsStream>, Status> {
        let all =
            self.work(request, |node, request| Ok(container::stats::list(node, request.filter))).await?.into_inner();
        Ok(Response::new(pieces(all, |container_stats| StreamContainerStatsResponse { container_stats })))
    }

    type StreamPodSandboxStatsStream = Answers<StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxStatsStream>, Status> {
        let all =
            self.work(request, |node, request| Ok(sandbox::stats::list(node, request.filter))).await?.into_inner();
        Ok(Response::new(pieces(all, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats })))
    }

    type StreamPodSandboxMetricsStream = Answers<StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<StreamPodSandboxMetricsRequest>,
    ) -> Result<Response<Self::StreamPodSandboxMetricsStream>, Status> {
        let all = self.work(request, |node, _request| Ok(sandbox::stats::metrics(node))).await?.into_inner();
        Ok(Response::new(pieces(all, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics })))
    }
}
