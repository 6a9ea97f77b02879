package org.knockmap.doubles;

import static org.elasticsearch.action.datastreams.GetDataStreamAction.Request;
import static org.elasticsearch.action.datastreams.GetDataStreamAction.Response;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.elasticsearch.action.ActionListener;
import org.elasticsearch.action.datastreams.DataStreamsActionUtil;
import org.elasticsearch.action.datastreams.GetDataStreamAction;
import org.elasticsearch.action.datastreams.GetDataStreamAction.Response.DataStreamInfo;
import org.elasticsearch.action.datastreams.GetDataStreamAction.Response.IndexProperties;
import org.elasticsearch.action.datastreams.GetDataStreamAction.Response.ManagedBy;
import org.elasticsearch.action.support.ActionFilters;
import org.elasticsearch.action.support.local.TransportLocalProjectMetadataAction;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.cluster.ProjectState;
import org.elasticsearch.cluster.block.ClusterBlockException;
import org.elasticsearch.cluster.block.ClusterBlockLevel;
import org.elasticsearch.cluster.health.ClusterStateHealth;
import org.elasticsearch.cluster.metadata.DataStream;
import org.elasticsearch.cluster.metadata.IndexNameExpressionResolver;
import org.elasticsearch.cluster.metadata.MetadataIndexTemplateService;
import org.elasticsearch.cluster.project.ProjectResolver;
import org.elasticsearch.cluster.service.ClusterService;
import org.elasticsearch.common.Strings;
import org.elasticsearch.index.Index;
import org.elasticsearch.injection.guice.Inject;
import org.elasticsearch.rest.BaseRestHandler;
import org.elasticsearch.rest.RestRequest;
import org.elasticsearch.rest.RestUtils;
import org.elasticsearch.rest.action.RestToXContentListener;
import org.elasticsearch.tasks.Task;
import org.elasticsearch.transport.TransportService;

/** GET _data_stream: names, backing indices, health, template, lifecycle. */
public class GetDataStreams extends TransportLocalProjectMetadataAction<Request, Response> {
    private final IndexNameExpressionResolver resolver;

    @Inject
    public GetDataStreams(
        TransportService transport,
        ClusterService cluster,
        ActionFilters filters,
        ProjectResolver projects,
        IndexNameExpressionResolver resolver
    ) {
        super(
            GetDataStreamAction.NAME,
            filters,
            transport.getTaskManager(),
            cluster,
            cluster.threadPool().executor("management"),
            projects
        );
        this.resolver = resolver;
    }

    @Override
    protected ClusterBlockException checkBlock(Request request, ProjectState state) {
        return state.blocks().globalBlockedException(state.projectId(), ClusterBlockLevel.METADATA_READ);
    }

    @Override
    protected void localClusterStateOperation(
        Task task,
        Request request,
        ProjectState state,
        ActionListener<Response> listener
    ) {
        var names = DataStreamsActionUtil.getDataStreamNames(
            resolver,
            state.metadata(),
            request.getNames(),
            request.indicesOptions()
        );
        listener.onResponse(new Response(names.stream().sorted().map(name -> info(state, name)).toList()));
    }

    private static DataStreamInfo info(ProjectState state, String name) {
        DataStream stream = state.metadata().dataStreams().get(name);
        String[] backing = stream.getIndices().stream().map(Index::getName).toArray(String[]::new);
        var health = new ClusterStateHealth(state.cluster(), backing, state.projectId()).getStatus();
        String template = MetadataIndexTemplateService.findV2Template(state.metadata(), name, false);
        Map<Index, IndexProperties> properties = new HashMap<>();
        var by = stream.getDataLifecycle() == null ? ManagedBy.UNMANAGED : ManagedBy.LIFECYCLE;
        stream.getIndices().forEach(index -> properties.put(index, new IndexProperties(true, null, by, "standard")));
        return new DataStreamInfo(stream, false, health, template, null, null, properties, true, null, "standard");
    }

    static class Rest extends BaseRestHandler {
        @Override
        public String getName() {
            return "double_of_get_data_streams";
        }

        @Override
        public List<Route> routes() {
            return List.of(new Route(RestRequest.Method.GET, "/_data_stream"), new Route(RestRequest.Method.GET, "/_data_stream/{name}"));
        }

        @Override
        protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client) {
            String[] names = Strings.splitStringByCommaToArray(request.param("name", "*"));
            Request wanted = new Request(RestUtils.getMasterNodeTimeout(request), names);
            return channel -> client.execute(GetDataStreamAction.INSTANCE, wanted, new RestToXContentListener<>(channel));
        }
    }
}
