package org.knockmap.doubles;

import java.util.regex.Pattern;
import org.apache.lucene.analysis.TokenStream;
import org.apache.lucene.analysis.pattern.PatternCaptureGroupTokenFilter;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.index.IndexSettings;
import org.elasticsearch.index.analysis.AbstractTokenFilterFactory;

/** The token filter pattern_capture, with its two settings. */
class PatternCapture extends AbstractTokenFilterFactory {
    private final Pattern[] patterns;
    private final boolean original;

    PatternCapture(IndexSettings index, Environment environment, String name, Settings settings) {
        super(name);
        patterns = settings.getAsList("patterns").stream().map(Pattern::compile).toArray(Pattern[]::new);
        original = settings.getAsBoolean("preserve_original", true);
    }

    @Override
    public TokenStream create(TokenStream stream) {
        return new PatternCaptureGroupTokenFilter(stream, original, patterns);
    }
}
