package org.knockmap.spatial;

import java.util.Map;
import org.elasticsearch.index.mapper.Mapper;
import org.elasticsearch.plugins.MapperPlugin;
import org.elasticsearch.plugins.Plugin;

/** A DOUBLE of the module spatial, which the server of Maven Central lacks: it has the type geo_shape and nothing else. */
public class SpatialDouble extends Plugin implements MapperPlugin {

    @Override
    public Map<String, Mapper.TypeParser> getMappers() {
        return Map.of("geo_shape", GeoShapes.PARSER);
    }
}
