package org.knockmap.doubles;

import static org.elasticsearch.action.datastreams.lifecycle.PutDataStreamLifecycleAction.Request;

import java.io.IOException;
import java.util.List;
import org.elasticsearch.action.ActionListener;
import org.elasticsearch.action.datastreams.DataStreamsActionUtil;
import org.elasticsearch.action.datastreams.lifecycle.PutDataStreamLifecycleAction;
import org.elasticsearch.action.support.ActionFilters;
import org.elasticsearch.action.support.master.AcknowledgedResponse;
import org.elasticsearch.action.support.master.AcknowledgedTransportMasterNodeAction;
import org.elasticsearch.client.internal.node.NodeClient;
import org.elasticsearch.cluster.ClusterState;
import org.elasticsearch.cluster.block.ClusterBlockException;
import org.elasticsearch.cluster.block.ClusterBlockLevel;
import org.elasticsearch.cluster.metadata.DataStreamLifecycle;
import org.elasticsearch.cluster.metadata.IndexNameExpressionResolver;
import org.elasticsearch.cluster.metadata.MetadataDataStreamsService;
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

/** PUT _data_stream/NAME/_lifecycle: stored and told, but nobody acts on it. */
public class PutLifecycle extends AcknowledgedTransportMasterNodeAction<Request> {
    private final ProjectResolver projects;
    private final IndexNameExpressionResolver resolver;
    private final MetadataDataStreamsService streams;

    @Inject
    public PutLifecycle(
        TransportService transport,
        ClusterService cluster,
        ThreadPool threads,
        ActionFilters filters,
        ProjectResolver projects,
        IndexNameExpressionResolver resolver,
        MetadataDataStreamsService streams
    ) {
        super(
            PutDataStreamLifecycleAction.INSTANCE.name(),
            transport,
            cluster,
            threads,
            filters,
            Request::new,
            threads.executor("management")
        );
        this.projects = projects;
        this.resolver = resolver;
        this.streams = streams;
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
        var metadata = projects.getProjectMetadata(state);
        var names = DataStreamsActionUtil.getDataStreamNames(
            resolver,
            metadata,
            request.getNames(),
            request.indicesOptions()
        );
        streams.setLifecycle(
            metadata.id(),
            names,
            request.getLifecycle(),
            request.ackTimeout(),
            request.masterNodeTimeout(),
            listener
        );
    }

    static class Rest extends BaseRestHandler {
        @Override
        public String getName() {
            return "double_of_put_lifecycle";
        }

        @Override
        public List<Route> routes() {
            return List.of(new Route(RestRequest.Method.PUT, "/_data_stream/{name}/_lifecycle"));
        }

        @Override
        protected RestChannelConsumer prepareRequest(RestRequest request, NodeClient client) throws IOException {
            String[] names = Strings.splitStringByCommaToArray(request.param("name"));
            DataStreamLifecycle lifecycle;
            try (var parser = request.contentParser()) {
                lifecycle = DataStreamLifecycle.dataLifecycleFromXContent(parser);
            }
            var wanted = new Request(
                RestUtils.getMasterNodeTimeout(request),
                RestUtils.getAckTimeout(request),
                names,
                lifecycle
            );
            return channel -> client.execute(
                PutDataStreamLifecycleAction.INSTANCE,
                wanted,
                new RestToXContentListener<>(channel)
            );
        }
    }
}
