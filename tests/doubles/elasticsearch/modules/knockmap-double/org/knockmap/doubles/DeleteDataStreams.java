package org.knockmap.doubles;

import static org.elasticsearch.action.datastreams.DeleteDataStreamAction.Request;

import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;
import org.elasticsearch.action.ActionListener;
import org.elasticsearch.action.datastreams.DataStreamsActionUtil;
import org.elasticsearch.action.datastreams.DeleteDataStreamAction;
import org.elasticsearch.action.support.ActionFilters;
import org.elasticsearch.action.support.master.AcknowledgedResponse;
import org.elasticsearch.action.support.master.AcknowledgedTransportMasterNodeAction;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.cluster.ClusterState;
import org.elasticsearch.cluster.ClusterStateUpdateTask;
import org.elasticsearch.cluster.block.ClusterBlockException;
import org.elasticsearch.cluster.block.ClusterBlockLevel;
import org.elasticsearch.cluster.metadata.DataStream;
import org.elasticsearch.cluster.metadata.IndexNameExpressionResolver;
import org.elasticsearch.cluster.metadata.MetadataDataStreamsService;
import org.elasticsearch.cluster.metadata.ProjectId;
import org.elasticsearch.cluster.project.ProjectResolver;
import org.elasticsearch.cluster.service.ClusterService;
import org.elasticsearch.common.Strings;
import org.elasticsearch.injection.guice.Inject;
import org.elasticsearch.rest.BaseRestHandler;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.rest.RestUtils;
import org.elasticsearch.rest.action.RestToXContentListener;
import org.elasticsearch.tasks.Task;
import org.elasticsearch.threadpool.ThreadPool;
import org.elasticsearch.transport.TransportService;

/** DELETE _data_stream/NAME, with its backing indices. */
public class DeleteDataStreams extends AcknowledgedTransportMasterNodeAction<Request> {
    private final ProjectResolver projects;
    private final IndexNameExpressionResolver resolver;

    @Inject
    public DeleteDataStreams(
        TransportService transport,
        ClusterService cluster,
        ThreadPool threads,
        ActionFilters filters,
        ProjectResolver projects,
        IndexNameExpressionResolver resolver
    ) {
        super(DeleteDataStreamAction.NAME, transport, cluster, threads, filters, Request::new, threads.executor("management"));
        this.projects = projects;
        this.resolver = resolver;
    }

    @Override
    protected ClusterBlockException checkBlock(Request request, ClusterState state) {
        return state.blocks().globalBlockedException(projects.getProjectId(), ClusterBlockLevel.METADATA_WRITE);
    }

    @Override
    protected void masterOperation(
        Task task,
        Request request,
        ClusterState state,
        ActionListener<AcknowledgedResponse> listener
    ) {
        ProjectId project = projects.getProjectId();
        clusterService.submitUnbatchedStateUpdateTask("remove-data-stream", new ClusterStateUpdateTask() {
            @Override
            public ClusterState execute(ClusterState current) {
                var at = current.projectState(project);
                Set<DataStream> found = DataStreamsActionUtil.getDataStreamNames(
                    resolver,
                    at.metadata(),
                    request.getNames(),
                    request.indicesOptions()
                ).stream().map(at.metadata().dataStreams()::get).collect(Collectors.toSet());
                return MetadataDataStreamsService.deleteDataStreams(at, found, clusterService.getSettings());
            }

            @Override
            public void onFailure(Exception error) {
                listener.onFailure(error);
            }

            @Override
            public void clusterStateProcessed(ClusterState before, ClusterState after) {
                listener.onResponse(AcknowledgedResponse.TRUE);
            }
        });
    }

    static class Rest extends BaseRestHandler {
        @Override
        public String getName() {
            return "double_of_delete_data_streams";
        }

        @Override
        public List<Route> routes() {
            return List.of(new Route(RestRequest.Method.DELETE, "/_data_stream/{name}"));
        }

        @Override
        protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client) {
            String[] names = Strings.splitStringByCommaToArray(request.param("name"));
            Request wanted = new Request(RestUtils.getMasterNodeTimeout(request), names);
            return channel -> client.execute(DeleteDataStreamAction.INSTANCE, wanted, new RestToXContentListener<>(channel));
        }
    }
}
