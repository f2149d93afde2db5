//! Drives one pod through its life as a kubelet of Kubernetes 1.32 does, with that version's
//! generated types, and checks each answer: `older-client SOCKET IMAGE`.

use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint, Uri};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, image] = arguments.as_slice() else { panic!("usage: older-client SOCKET IMAGE") };
    let channel = connect(socket.clone()).await;
    let mut client = Client { runtime: RuntimeServiceClient::new(channel.clone()), image: image.clone() };
    client.node().await;
    image_is_known(channel, image).await;
    let (pod, config) = client.run_pod().await;
    let container = client.run_container(&pod, config).await;
    client.exec(&container).await;
    client.end_container(&pod, &container).await;
    client.end_pod(&pod).await;
    println!("ok");
}

async fn connect(socket: String) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.expect("connecting")
}

async fn image_is_known(channel: Channel, image: &str) {
    let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
    let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
    let status = ImageServiceClient::new(channel).image_status(request).await.expect("ImageStatus");
    let found = status.into_inner().image.expect("the image is there");
    assert!(!found.id.is_empty() && found.size > 0, "{found:?}");
}

struct Client {
    runtime: RuntimeServiceClient<Channel>,
    image: String,
}

impl Client {
    async fn node(&mut self) {
        let version = self.runtime.version(cri::VersionRequest { version: "v1".into() }).await;
        let version = version.expect("Version").into_inner();
        assert_eq!(version.runtime_api_version, "v1");
        assert!(!version.runtime_name.is_empty() && !version.runtime_version.is_empty(), "{version:?}");
        let status = self.runtime.status(cri::StatusRequest { verbose: false }).await;
        let conditions = status.expect("Status").into_inner().status.expect("a status").conditions;
        for name in ["RuntimeReady", "NetworkReady"] {
            let condition = conditions.iter().find(|c| c.r#type == name).expect(name);
            assert!(condition.status, "{condition:?}");
        }
    }

    async fn run_pod(&mut self) -> (String, cri::PodSandboxConfig) {
        let metadata = cri::PodSandboxMetadata {
            name: "older".into(),
            uid: "older-uid".into(),
            namespace: "default".into(),
            attempt: 0,
        };
        let config = cri::PodSandboxConfig {
            metadata: Some(metadata.clone()),
            hostname: "older".into(),
            labels: [("app".to_owned(), "older".to_owned())].into(),
            linux: Some(cri::LinuxPodSandboxConfig::default()),
            ..Default::default()
        };
        let request =
            cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let answer = self.runtime.run_pod_sandbox(request).await.expect("RunPodSandbox");
        let pod = answer.into_inner().pod_sandbox_id;
        let status = self.pod_status(&pod).await.expect("PodSandboxStatus");
        assert_eq!(status.id, pod);
        assert_eq!(status.metadata, Some(metadata));
        assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
        assert_eq!(status.labels, config.labels);
        let ip = status.network.expect("a network").ip;
        assert!(ip.parse::<std::net::IpAddr>().is_ok(), "{ip:?}");
        (pod, config)
    }

    async fn run_container(&mut self, pod: &str, sandbox: cri::PodSandboxConfig) -> String {
        let script = "trap 'exit 5' TERM; while :; do sleep 0.05; done";
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 1 }),
            image: Some(cri::ImageSpec { image: self.image.clone(), ..Default::default() }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            // A string then, bytes now: the same on the wire.
            envs: vec![cri::KeyValue { key: "GREETING".into(), value: "grüße".into() }],
            labels: [("app".to_owned(), "older".to_owned())].into(),
            linux: Some(cri::LinuxContainerConfig::default()),
            ..Default::default()
        };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let answer = self.runtime.create_container(request).await.expect("CreateContainer");
        let id = answer.into_inner().container_id;
        let status = self.container_status(&id).await.expect("ContainerStatus");
        assert_eq!(status.state(), cri::ContainerState::ContainerCreated);
        assert_eq!(status.metadata, Some(cri::ContainerMetadata { name: "main".into(), attempt: 1 }));
        let request = cri::StartContainerRequest { container_id: id.clone() };
        self.runtime.start_container(request).await.expect("StartContainer");
        let status = self.container_status(&id).await.expect("ContainerStatus");
        assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
        assert!(status.started_at >= status.created_at && status.finished_at == 0, "{status:?}");
        let listed = self.listed(pod).await;
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].id.as_str(), listed[0].pod_sandbox_id.as_str()), (id.as_str(), pod));
        assert_eq!(listed[0].state(), cri::ContainerState::ContainerRunning);
        id
    }

    async fn exec(&mut self, container: &str) {
        let script = "echo \"$GREETING\"; echo problem >&2; exit 7";
        let request = cri::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            timeout: 20,
        };
        let answer = self.runtime.exec_sync(request).await.expect("ExecSync").into_inner();
        assert_eq!(String::from_utf8_lossy(&answer.stdout), "grüße\n");
        assert_eq!(String::from_utf8_lossy(&answer.stderr), "problem\n");
        assert_eq!(answer.exit_code, 7);
    }

    async fn end_container(&mut self, pod: &str, container: &str) {
        let request = cri::StopContainerRequest { container_id: container.to_owned(), timeout: 20 };
        self.runtime.stop_container(request).await.expect("StopContainer");
        let status = self.container_status(container).await.expect("ContainerStatus");
        assert_eq!(status.state(), cri::ContainerState::ContainerExited);
        assert_eq!(status.exit_code, 5, "it was asked to end by SIGTERM: {status:?}");
        assert!(status.finished_at >= status.started_at, "{status:?}");
        let request = cri::RemoveContainerRequest { container_id: container.to_owned() };
        self.runtime.remove_container(request).await.expect("RemoveContainer");
        let gone = self.container_status(container).await.expect_err("it was removed");
        assert_eq!(gone.code(), tonic::Code::NotFound, "{gone}");
        assert_eq!(self.listed(pod).await, []);
    }

    async fn end_pod(&mut self, pod: &str) {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.stop_pod_sandbox(request).await.expect("StopPodSandbox");
        let status = self.pod_status(pod).await.expect("PodSandboxStatus");
        assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.remove_pod_sandbox(request).await.expect("RemovePodSandbox");
        let gone = self.pod_status(pod).await.expect_err("it was removed");
        assert_eq!(gone.code(), tonic::Code::NotFound, "{gone}");
    }

    async fn pod_status(&mut self, pod: &str) -> Result<cri::PodSandboxStatus, tonic::Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: false };
        Ok(self.runtime.pod_sandbox_status(request).await?.into_inner().status.expect("a status"))
    }

    async fn container_status(&mut self, id: &str) -> Result<cri::ContainerStatus, tonic::Status> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        Ok(self.runtime.container_status(request).await?.into_inner().status.expect("a status"))
    }

    async fn listed(&mut self, pod: &str) -> Vec<cri::Container> {
        let filter = cri::ContainerFilter { pod_sandbox_id: pod.to_owned(), ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        self.runtime.list_containers(request).await.expect("ListContainers").into_inner().containers
    }
}
