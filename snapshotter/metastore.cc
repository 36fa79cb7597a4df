#include "snapshotter/metastore.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "snapshotter/idmap.h"
#include "snapshotter/labels.h"

namespace lazyblob::snapshotter {
namespace {

using Query = base::Sqlite::Query;
using Transaction = base::Sqlite::Transaction;

constexpr int kApplicationId = 0x6c7a626c;  // "lzbl"

constexpr char kSchema[] = R"(
CREATE TABLE snapshots(
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  name    TEXT NOT NULL UNIQUE,
  parent  INTEGER REFERENCES snapshots(id),
  kind    INTEGER NOT NULL CHECK(kind BETWEEN 1 AND 3),
  created INTEGER NOT NULL,
  updated INTEGER NOT NULL,
  bytes   INTEGER NOT NULL DEFAULT 0,
  inodes  INTEGER NOT NULL DEFAULT 0,
  uid_map TEXT,
  gid_map TEXT);
CREATE INDEX snapshots_by_parent ON snapshots(parent);
CREATE TABLE labels(
  snapshot INTEGER NOT NULL REFERENCES snapshots(id) ON DELETE CASCADE,
  key      TEXT NOT NULL,
  value    TEXT NOT NULL,
  PRIMARY KEY(snapshot, key)) WITHOUT ROWID;
CREATE INDEX labels_by_ref ON labels(value) WHERE key = 'containerd.io/snapshot.ref';
CREATE TABLE lazy(
  snapshot    INTEGER PRIMARY KEY REFERENCES snapshots(id) ON DELETE CASCADE,
  layer       TEXT NOT NULL,
  meta_path   TEXT NOT NULL,
  target      TEXT NOT NULL,
  mode        TEXT NOT NULL,
  direct      INTEGER NOT NULL,
  opaque_root INTEGER NOT NULL);
)";

// Columns of LayerOf, from `lazy AS z`, and of RecordOf, from `snapshots AS s`, its parent `p` and `z`.
#define LAYER_COLUMNS "z.layer, z.meta_path, z.target, z.mode, z.direct, z.opaque_root"
#define RECORD_COLUMNS                                                      \
  "s.id, s.name, s.parent, p.name, s.kind, s.created, s.updated, s.bytes, " \
  "s.inodes, s.uid_map, s.gid_map, " LAYER_COLUMNS
#define RECORD_TABLES \
  "snapshots AS s LEFT JOIN snapshots AS p ON p.id = s.parent LEFT JOIN lazy AS z ON z.snapshot = s.id"
constexpr int kLayerColumnOfRecord = 11;

absl::StatusOr<Labels> ReadLabels(Transaction& db, int64_t id) {
  ASSIGN_OR_RETURN(Query query, db.Prepare("SELECT key, value FROM labels WHERE snapshot = ?"));
  query.Bind(id);
  Labels labels;
  for (;;) {
    ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) return labels;
    labels[query.Text(0)] = query.Text(1);
  }
}

absl::Status WriteLabels(Transaction& db, int64_t id, const Labels& labels) {
  for (const auto& [key, value] : labels) {
    ASSIGN_OR_RETURN(Query query, db.Prepare("INSERT INTO labels(snapshot, key, value) VALUES(?, ?, ?)"));
    RETURN_IF_ERROR(query.Bind(id).Bind(key).Bind(value).Run());
  }
  return absl::OkStatus();
}

absl::Status DeleteLabels(Transaction& db, int64_t id) {
  ASSIGN_OR_RETURN(Query query, db.Prepare("DELETE FROM labels WHERE snapshot = ?"));
  return query.Bind(id).Run();
}

absl::StatusOr<std::optional<LayerMount>> LayerOf(const Query& query, int first) {
  if (query.IsNull(first)) return std::nullopt;
  LayerMount layer;
  auto digest = base::Digest::Parse(query.Text(first));
  auto mode = fuse::ParseMode(query.Text(first + 3));
  if (!digest.ok() || !mode.ok() || !mode->has_value()) {
    return absl::DataLossError("snapshots.db: a lazy layer with a digest or a mode that is none");
  }
  layer.layer = *digest;
  layer.meta_path = query.Text(first + 1);
  layer.target = query.Text(first + 2);
  layer.mode = **mode;
  layer.direct = query.Int(first + 4) != 0;
  layer.opaque_root = query.Int(first + 5) != 0;
  return layer;
}

absl::StatusOr<std::optional<fuse::IdMapping>> MappingOf(const Query& query, int first) {
  if (query.IsNull(first)) return std::nullopt;
  auto mapping =
      ParseIdMapping({{kLabelUidMapping, query.Text(first)}, {kLabelGidMapping, query.Text(first + 1)}});
  if (!mapping.ok()) return absl::DataLossError(absl::StrCat("snapshots.db: ", mapping.status().message()));
  return mapping;
}

absl::StatusOr<Record> RecordOf(const Query& query) {
  Record record;
  record.id = query.Int(0);
  record.info.name = query.Text(1);
  record.parent_id = query.Int(2);
  record.info.parent = query.Text(3);
  record.info.kind = static_cast<Kind>(query.Int(4));
  record.info.created = absl::FromUnixNanos(query.Int(5));
  record.info.updated = absl::FromUnixNanos(query.Int(6));
  record.usage = {static_cast<uint64_t>(query.Int(7)), static_cast<uint64_t>(query.Int(8))};
  ASSIGN_OR_RETURN(record.mapping, MappingOf(query, 9));
  ASSIGN_OR_RETURN(record.layer, LayerOf(query, kLayerColumnOfRecord));
  return record;
}

}  // namespace

MetaStore::MetaStore(std::unique_ptr<base::Sqlite> database) : database_(std::move(database)) {}

absl::StatusOr<std::unique_ptr<MetaStore>> MetaStore::Open(const std::string& path) {
  base::SqliteSchema schema;
  schema.application_id = kApplicationId;
  schema.version = kVersion;
  schema.tables = kSchema;
  schema.if_damaged = "move it away together with its directory s/ to start anew";
  ASSIGN_OR_RETURN(std::unique_ptr<base::Sqlite> database, base::Sqlite::Open(path, schema));
  return std::unique_ptr<MetaStore>(new MetaStore(std::move(database)));
}

absl::Status MetaStore::Write(absl::FunctionRef<absl::Status(Transaction&)> body,
                              absl::FunctionRef<void()> undone) {
  return database_->Write(
      [&](base::Sqlite::Transaction& inner) {
        Transaction transaction(inner);
        return body(transaction);
      },
      undone);
}

absl::StatusOr<RecordedFiles> MetaStore::Files() {
  RecordedFiles files;
  RETURN_IF_ERROR(Read([&](Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(const std::vector<Transaction::Row> rows, transaction.Rows());
    for (const Transaction::Row& row : rows) {
      if (!row.lazy) files.directories.insert(row.id);
    }
    ASSIGN_OR_RETURN(const std::vector<Link> links, transaction.LazyLinks());
    for (const Link& link : links) files.layers.insert(link.layer->layer);
    return absl::OkStatus();
  }));
  return files;
}

absl::Status MetaStore::Read(absl::FunctionRef<absl::Status(Transaction&)> body) {
  return database_->Read([&](base::Sqlite::Transaction& inner) {
    Transaction transaction(inner);
    return body(transaction);
  });
}

absl::StatusOr<Record> MetaStore::Transaction::Get(const std::string& name) {
  ASSIGN_OR_RETURN(Query query,
                   db_.Prepare("SELECT " RECORD_COLUMNS " FROM " RECORD_TABLES " WHERE s.name = ?"));
  ASSIGN_OR_RETURN(bool row, query.Bind(name).Step());
  if (!row) {
    return absl::NotFoundError(absl::StrCat("snapshot \"", base::Printable(name), "\": does not exist"));
  }
  ASSIGN_OR_RETURN(Record record, RecordOf(query));
  ASSIGN_OR_RETURN(record.info.labels, ReadLabels(db_, record.id));
  return record;
}

absl::StatusOr<bool> MetaStore::Transaction::Exists(const std::string& name) {
  ASSIGN_OR_RETURN(Query query, db_.Prepare("SELECT 1 FROM snapshots WHERE name = ?"));
  return query.Bind(name).Step();
}

absl::StatusOr<std::vector<Link>> MetaStore::Transaction::Chain(int64_t id) {
  ASSIGN_OR_RETURN(
      Query query,
      db_.Prepare("WITH RECURSIVE chain(id, depth) AS (SELECT ?, 0 UNION ALL "
                  "SELECT s.parent, depth + 1 FROM chain JOIN snapshots AS s ON s.id = chain.id "
                  "WHERE s.parent IS NOT NULL) "
                  "SELECT s.id, s.name, " LAYER_COLUMNS " FROM chain JOIN snapshots AS s ON s.id = chain.id "
                  "LEFT JOIN lazy AS z ON z.snapshot = s.id ORDER BY chain.depth"));
  query.Bind(id);
  std::vector<Link> chain;
  for (;;) {
    ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) return chain;
    ASSIGN_OR_RETURN(std::optional<LayerMount> layer, LayerOf(query, 2));
    chain.push_back({query.Int(0), query.Text(1), std::move(layer)});
  }
}

absl::StatusOr<std::vector<std::string>> MetaStore::Transaction::Children(int64_t id, int limit) {
  ASSIGN_OR_RETURN(Query query, db_.Prepare("SELECT name FROM snapshots WHERE parent = ? LIMIT ?"));
  query.Bind(id).Bind(int64_t{limit});
  std::vector<std::string> names;
  for (;;) {
    ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) return names;
    names.push_back(query.Text(0));
  }
}

absl::StatusOr<std::vector<Record>> MetaStore::Transaction::LazyByRef(const std::string& ref,
                                                                      int64_t parent_id) {
  ASSIGN_OR_RETURN(
      Query query,
      db_.Prepare("SELECT " RECORD_COLUMNS " FROM labels AS l JOIN " RECORD_TABLES
                  " WHERE s.id = l.snapshot AND l.key = 'containerd.io/snapshot.ref' AND l.value = ? "
                  "AND z.snapshot IS NOT NULL AND ifnull(s.parent, 0) = ? ORDER BY s.id"));
  query.Bind(ref).Bind(parent_id);
  std::vector<Record> records;
  for (;;) {
    ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) return records;
    ASSIGN_OR_RETURN(Record record, RecordOf(query));
    records.push_back(std::move(record));
  }
}

absl::StatusOr<std::vector<Record>> MetaStore::Transaction::List() {
  std::vector<Record> records;
  std::map<int64_t, size_t> by_id;
  ASSIGN_OR_RETURN(Query query,
                   db_.Prepare("SELECT " RECORD_COLUMNS " FROM " RECORD_TABLES " ORDER BY s.name"));
  for (;;) {
    ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) break;
    ASSIGN_OR_RETURN(Record record, RecordOf(query));
    by_id[record.id] = records.size();
    records.push_back(std::move(record));
  }
  ASSIGN_OR_RETURN(Query labels, db_.Prepare("SELECT snapshot, key, value FROM labels"));
  for (;;) {
    ASSIGN_OR_RETURN(bool row, labels.Step());
    if (!row) return records;
    auto found = by_id.find(labels.Int(0));
    if (found != by_id.end()) records[found->second].info.labels[labels.Text(1)] = labels.Text(2);
  }
}

absl::StatusOr<std::vector<Link>> MetaStore::Transaction::LazyLinks() {
  ASSIGN_OR_RETURN(Query query, db_.Prepare("SELECT s.id, s.name, " LAYER_COLUMNS
                                            " FROM lazy AS z JOIN snapshots AS s ON s.id = z.snapshot "
                                            "ORDER BY s.id"));
  std::vector<Link> links;
  for (;;) {
    ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) return links;
    ASSIGN_OR_RETURN(std::optional<LayerMount> layer, LayerOf(query, 2));
    links.push_back({query.Int(0), query.Text(1), std::move(layer)});
  }
}

absl::StatusOr<std::vector<Record>> MetaStore::Transaction::MappedSnapshots() {
  ASSIGN_OR_RETURN(Query query, db_.Prepare("SELECT " RECORD_COLUMNS " FROM " RECORD_TABLES
                                            " WHERE s.uid_map IS NOT NULL ORDER BY s.id"));
  std::vector<Record> records;
  for (;;) {
    ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) return records;
    ASSIGN_OR_RETURN(Record record, RecordOf(query));
    records.push_back(std::move(record));
  }
}

absl::StatusOr<std::vector<MetaStore::Transaction::Row>> MetaStore::Transaction::Rows() {
  ASSIGN_OR_RETURN(Query query, db_.Prepare("SELECT s.id, s.name, z.snapshot IS NOT NULL FROM snapshots AS s "
                                            "LEFT JOIN lazy AS z ON z.snapshot = s.id ORDER BY s.id"));
  std::vector<Row> rows;
  for (;;) {
    ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) return rows;
    rows.push_back({query.Int(0), query.Text(1), query.Int(2) != 0});
  }
}

absl::Status MetaStore::Transaction::Insert(Record& record) {
  std::string uids, gids;
  {
    ASSIGN_OR_RETURN(Query query,
                     db_.Prepare("INSERT INTO snapshots(name, parent, kind, created, updated, bytes, inodes, "
                                 "uid_map, gid_map) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)"));
    query.Bind(record.info.name);
    record.parent_id == 0 ? query.BindNull() : query.Bind(record.parent_id);
    query.Bind(static_cast<int64_t>(record.info.kind))
        .Bind(absl::ToUnixNanos(record.info.created))
        .Bind(absl::ToUnixNanos(record.info.updated))
        .Bind(static_cast<int64_t>(record.usage.bytes))
        .Bind(static_cast<int64_t>(record.usage.inodes));
    if (record.mapping.has_value()) {
      uids = FormatIdRanges(record.mapping->uids);
      gids = FormatIdRanges(record.mapping->gids);
      query.Bind(uids).Bind(gids);
    }
    absl::Status status = query.Run();
    if (absl::IsAlreadyExists(status)) {
      return absl::AlreadyExistsError(
          absl::StrCat("snapshot \"", base::Printable(record.info.name), "\": already exists"));
    }
    RETURN_IF_ERROR(status);
  }
  record.id = db_.LastId();
  RETURN_IF_ERROR(WriteLabels(db_, record.id, record.info.labels));
  if (!record.layer.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(Query query, db_.Prepare("INSERT INTO lazy(snapshot, layer, meta_path, target, mode, "
                                            "direct, opaque_root) VALUES(?, ?, ?, ?, ?, ?, ?)"));
  const std::string layer = record.layer->layer.ToString();
  return query.Bind(record.id)
      .Bind(layer)
      .Bind(record.layer->meta_path)
      .Bind(record.layer->target)
      .Bind(fuse::ModeName(record.layer->mode))
      .Bind(int64_t{record.layer->direct})
      .Bind(int64_t{record.layer->opaque_root})
      .Run();
}

absl::Status MetaStore::Transaction::SetCommitted(const Record& record) {
  {
    ASSIGN_OR_RETURN(
        Query query,
        db_.Prepare("UPDATE snapshots SET name = ?, parent = ?, kind = 3, created = ?, updated = ?, "
                    "bytes = ?, inodes = ?, uid_map = NULL, gid_map = NULL WHERE id = ?"));
    query.Bind(record.info.name);
    record.parent_id == 0 ? query.BindNull() : query.Bind(record.parent_id);
    absl::Status status = query.Bind(absl::ToUnixNanos(record.info.created))
                              .Bind(absl::ToUnixNanos(record.info.updated))
                              .Bind(static_cast<int64_t>(record.usage.bytes))
                              .Bind(static_cast<int64_t>(record.usage.inodes))
                              .Bind(record.id)
                              .Run();
    if (absl::IsAlreadyExists(status)) {
      return absl::AlreadyExistsError(
          absl::StrCat("snapshot \"", base::Printable(record.info.name), "\": already exists"));
    }
    RETURN_IF_ERROR(status);
  }
  RETURN_IF_ERROR(DeleteLabels(db_, record.id));
  return WriteLabels(db_, record.id, record.info.labels);
}

absl::Status MetaStore::Transaction::SetLabels(int64_t id, const Labels& labels, absl::Time updated) {
  {
    ASSIGN_OR_RETURN(Query query, db_.Prepare("UPDATE snapshots SET updated = ? WHERE id = ?"));
    RETURN_IF_ERROR(query.Bind(absl::ToUnixNanos(updated)).Bind(id).Run());
  }
  RETURN_IF_ERROR(DeleteLabels(db_, id));
  return WriteLabels(db_, id, labels);
}

absl::Status MetaStore::Transaction::SetLayer(int64_t id, const LayerMount& layer) {
  ASSIGN_OR_RETURN(Query query,
                   db_.Prepare("UPDATE lazy SET layer = ?, meta_path = ?, target = ?, mode = ?, direct = ?, "
                               "opaque_root = ? WHERE snapshot = ?"));
  const std::string digest = layer.layer.ToString();
  RETURN_IF_ERROR(query.Bind(digest)
                      .Bind(layer.meta_path)
                      .Bind(layer.target)
                      .Bind(fuse::ModeName(layer.mode))
                      .Bind(int64_t{layer.direct})
                      .Bind(int64_t{layer.opaque_root})
                      .Bind(id)
                      .Run());
  return db_.Changes() == 1 ? absl::OkStatus() : absl::NotFoundError("no such lazy snapshot");
}

absl::Status MetaStore::Transaction::Delete(int64_t id) {
  ASSIGN_OR_RETURN(Query query, db_.Prepare("DELETE FROM snapshots WHERE id = ?"));
  return query.Bind(id).Run();
}

}  // namespace lazyblob::snapshotter
