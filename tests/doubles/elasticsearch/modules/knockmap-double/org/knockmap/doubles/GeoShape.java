package org.knockmap.doubles;

import java.util.List;
import java.util.Map;
import java.util.function.Function;
import org.apache.lucene.document.LatLonShape;
import org.apache.lucene.geo.LatLonGeometry;
import org.apache.lucene.search.Query;
import org.elasticsearch.common.Explicit;
import org.elasticsearch.common.geo.GeometryFormatterFactory;
import org.elasticsearch.common.geo.GeometryParser;
import org.elasticsearch.common.geo.Orientation;
import org.elasticsearch.common.geo.ShapeRelation;
import org.elasticsearch.geometry.Geometry;
import org.elasticsearch.index.mapper.AbstractShapeGeometryFieldMapper;
import org.elasticsearch.index.mapper.DocumentParserContext;
import org.elasticsearch.index.mapper.FieldMapper;
import org.elasticsearch.index.mapper.GeoShapeIndexer;
import org.elasticsearch.index.mapper.GeoShapeParser;
import org.elasticsearch.index.mapper.GeoShapeQueryable;
import org.elasticsearch.index.mapper.IndexType;
import org.elasticsearch.index.mapper.MapperBuilderContext;
import org.elasticsearch.index.query.SearchExecutionContext;

/** The field type geo_shape: shapes that can be stored and searched for, but not aggregated. */
public class GeoShape extends AbstractShapeGeometryFieldMapper<Geometry> {
    static final FieldMapper.TypeParser PARSER = new FieldMapper.TypeParser((name, context) -> new Builder(name));
    private final Builder builder;
    private final GeoShapeIndexer indexer;

    private GeoShape(Builder builder, Type type, BuilderParams parameters, GeoShapeParser parser) {
        super(
            builder.leafName(),
            type,
            parameters,
            builder.ignoreMalformed.get(),
            builder.coerce.get(),
            builder.ignoreZValue.get(),
            builder.orientation.get(),
            parser
        );
        this.builder = builder;
        this.indexer = new GeoShapeIndexer(builder.orientation.get().value(), type.name());
    }

    private static GeoShape of(FieldMapper mapper) {
        return (GeoShape) mapper;
    }

    @Override
    protected void index(DocumentParserContext context, Geometry geometry) {
        if (geometry != null) {
            context.doc().addAll(indexer.indexShape(geometry));
            context.addToFieldNames(fieldType().name());
        }
    }

    @Override
    protected String contentType() {
        return "geo_shape";
    }

    @Override
    public FieldMapper.Builder getMergeBuilder() {
        return new Builder(leafName()).init(this);
    }

    static class Builder extends FieldMapper.Builder {
        final Parameter<Explicit<Boolean>> ignoreMalformed = ignoreMalformedParam(m -> of(m).builder.ignoreMalformed.get(), false);
        final Parameter<Explicit<Boolean>> ignoreZValue = ignoreZValueParam(m -> of(m).builder.ignoreZValue.get());
        final Parameter<Explicit<Boolean>> coerce = coerceParam(m -> of(m).coerce, false);
        final Parameter<Explicit<Orientation>> orientation = orientationParam(m -> of(m).orientation);
        final Parameter<Map<String, String>> meta = Parameter.metaParam();

        Builder(String name) {
            super(name);
        }

        @Override
        protected Parameter<?>[] getParameters() {
            return new Parameter<?>[] { ignoreMalformed, ignoreZValue, coerce, orientation, meta };
        }

        @Override
        public String contentType() {
            return "geo_shape";
        }

        @Override
        public GeoShape build(MapperBuilderContext context) {
            var turn = orientation.get().value();
            var geometry = new GeometryParser(turn.getAsBoolean(), coerce.get().value(), ignoreZValue.get().value());
            var parser = new GeoShapeParser(geometry, turn);
            var type = new Type(context.buildFullName(leafName()), parser, turn, meta.get());
            return new GeoShape(this, type, builderParams(this, context), parser);
        }
    }

    static class Type extends AbstractShapeGeometryFieldType<Geometry> implements GeoShapeQueryable {
        Type(String name, GeoShapeParser parser, Orientation orientation, Map<String, String> meta) {
            super(name, IndexType.points(true, false), false, parser, orientation, meta);
        }

        @Override
        public String typeName() {
            return "geo_shape";
        }

        @Override
        public Query geoShapeQuery(
            SearchExecutionContext context,
            String name,
            ShapeRelation relation,
            LatLonGeometry... geometries
        ) {
            return LatLonShape.newGeometryQuery(name, relation.getLuceneRelation(), geometries);
        }

        @Override
        protected Function<List<Geometry>, List<Object>> getFormatter(String format) {
            return GeometryFormatterFactory.getFormatter(format == null ? "geojson" : format, Function.identity());
        }
    }
}
