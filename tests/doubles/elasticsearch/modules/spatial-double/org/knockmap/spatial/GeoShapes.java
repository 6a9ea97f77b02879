package org.knockmap.spatial;

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

/** The type geo_shape, made of the server's own parser and indexer: what these do not take, they refuse as ever. */
final class GeoShapes extends AbstractShapeGeometryFieldMapper<Geometry> {

    static final FieldMapper.TypeParser PARSER = new FieldMapper.TypeParser((name, context) -> new Builder(name));

    private final GeoShapeIndexer indexer;

    private GeoShapes(String name, Type type, BuilderParams params, Explicit<Boolean> ignoreMalformed, GeoShapeParser parser) {
        super(
            name,
            type,
            params,
            ignoreMalformed,
            Explicit.IMPLICIT_FALSE,
            Explicit.IMPLICIT_TRUE,
            new Explicit<>(Orientation.RIGHT, false),
            parser
        );
        indexer = new GeoShapeIndexer(Orientation.RIGHT, type.name());
    }

    @Override
    protected void index(DocumentParserContext context, Geometry geometry) {
        if (geometry == null) {
            return;
        }
        context.doc().addAll(indexer.indexShape(geometry));
        context.addToFieldNames(fieldType().name());
    }

    @Override
    public FieldMapper.Builder getMergeBuilder() {
        return new Builder(leafName()).init(this);
    }

    @Override
    protected String contentType() {
        return "geo_shape";
    }

    static final class Builder extends FieldMapper.Builder {

        private final Parameter<Explicit<Boolean>> ignoreMalformed = ignoreMalformedParam(
            mapper -> new Explicit<>(((GeoShapes) mapper).ignoreMalformed(), true),
            false
        );

        Builder(String name) {
            super(name);
        }

        @Override
        protected Parameter<?>[] getParameters() {
            return new Parameter<?>[] { ignoreMalformed };
        }

        @Override
        public String contentType() {
            return "geo_shape";
        }

        @Override
        public GeoShapes build(MapperBuilderContext context) {
            GeometryParser geometries = new GeometryParser(true, false, true);
            GeoShapeParser parser = new GeoShapeParser(geometries, Orientation.RIGHT);
            Type type = new Type(context.buildFullName(leafName()), parser);
            return new GeoShapes(leafName(), type, builderParams(this, context), ignoreMalformed.get(), parser);
        }
    }

    static final class Type extends AbstractShapeGeometryFieldType<Geometry> implements GeoShapeQueryable {

        Type(String name, GeoShapeParser parser) {
            super(name, IndexType.points(true, false), false, parser, Orientation.RIGHT, Map.of());
        }

        @Override
        public String typeName() {
            return "geo_shape";
        }

        @Override
        protected Function<List<Geometry>, List<Object>> getFormatter(String format) {
            return GeometryFormatterFactory.getFormatter(format, Function.identity());
        }

        @Override
        public Query geoShapeQuery(SearchExecutionContext context, String field, ShapeRelation relation, LatLonGeometry... shapes) {
            return LatLonShape.newGeometryQuery(field, relation.getLuceneRelation(), shapes);
        }
    }
}
