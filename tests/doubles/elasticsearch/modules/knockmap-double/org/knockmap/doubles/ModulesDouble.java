package org.knockmap.doubles;

import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;
import java.util.function.Supplier;
import org.apache.lucene.analysis.email.UAX29URLEmailTokenizer;
import org.elasticsearch.action.datastreams.DeleteDataStreamAction;
import org.elasticsearch.action.datastreams.GetDataStreamAction;
import org.elasticsearch.action.datastreams.lifecycle.PutDataStreamLifecycleAction;
import org.elasticsearch.cluster.node.DiscoveryNodes;
import org.elasticsearch.common.settings.SecureSetting;
import org.elasticsearch.common.settings.Setting;
import org.elasticsearch.features.NodeFeature;
import org.elasticsearch.index.analysis.PreConfiguredTokenFilter;
import org.elasticsearch.index.analysis.TokenFilterFactory;
import org.elasticsearch.index.analysis.TokenizerFactory;
import org.elasticsearch.indices.analysis.AnalysisModule.AnalysisProvider;
import org.elasticsearch.plugins.ActionPlugin;
import org.elasticsearch.plugins.AnalysisPlugin;
import org.elasticsearch.plugins.Plugin;
import org.elasticsearch.rest.RestHandler;

/**
 * A DOUBLE of what the server of Maven Central lacks and we cannot do without: of the module analysis-common the parts
 * that the index .security is made of; of rest-root the answer of GET /; of data-streams the calls that read and
 * remove a data stream, and that store its lifecycle.
 */
public class ModulesDouble extends Plugin implements AnalysisPlugin, ActionPlugin {

    /** Auto-configuration writes these into the keystore for a module that is absent, and an unknown setting is an error. */
    @Override
    public List<Setting<?>> getSettings() {
        String prefix = "cluster.state.encryption.";
        return List.of(
            SecureSetting.secureString(prefix + "active_password_id", null),
            Setting.prefixKeySetting(prefix + "password.", key -> SecureSetting.secureString(key, null))
        );
    }

    @Override
    public Map<String, AnalysisProvider<TokenFilterFactory>> getTokenFilters() {
        return Map.of("pattern_capture", AnalysisPlugin.requiresAnalysisSettings(PatternCapture::new));
    }

    @Override
    public Map<String, AnalysisProvider<TokenizerFactory>> getTokenizers() {
        return Map.of(
            "uax_url_email",
            (index, environment, name, settings) -> TokenizerFactory.newFactory(name, UAX29URLEmailTokenizer::new)
        );
    }

    @Override
    public List<PreConfiguredTokenFilter> getPreConfiguredTokenFilters() {
        return List.of(PreConfiguredTokenFilter.singleton("unique", false, Unique::new));
    }

    @Override
    public Collection<ActionHandler> getActions() {
        return List.of(
            new ActionHandler(Root.TYPE, Root.class),
            new ActionHandler(GetDataStreamAction.INSTANCE, GetDataStreams.class),
            new ActionHandler(DeleteDataStreamAction.INSTANCE, DeleteDataStreams.class),
            new ActionHandler(PutDataStreamLifecycleAction.INSTANCE, PutLifecycle.class)
        );
    }

    @Override
    public Collection<RestHandler> getRestHandlers(
        RestHandlersServices services,
        Supplier<DiscoveryNodes> nodes,
        Predicate<NodeFeature> features
    ) {
        return List.of(new Root.Rest(), new GetDataStreams.Rest(), new DeleteDataStreams.Rest(), new PutLifecycle.Rest());
    }
}
