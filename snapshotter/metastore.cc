#include "snapshotter/metastore.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>

#include <map>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "snapshotter/idmap.h"
#include "snapshotter/labels.h"

namespace lazyblob::snapshotter {
namespace {

constexpr int kApplicationId = 0x6c7a626c;  // "lzbl"
constexpr int kBusyMilliseconds = 5000;     // a predecessor that is just dying may still hold the lock

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

absl::Status SqliteStatus(int code, absl::string_view what, absl::string_view why) {
  const std::string text = absl::StrCat(what, ": ", why);
  switch (code & 0xff) {
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(
          absl::StrCat(text, "; make room on the disk of the state directory"));
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(absl::StrCat(
          text, "; restore the file, or move it away together with its directory s/ to start anew"));
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(absl::StrCat(text, "; another process uses the file"));
    default:
      return absl::InternalError(text);
  }
}

}  // namespace

// One prepared statement in use: bind, step, read columns. Reset and unbound when it goes.
class MetaStore::Database {
 public:
  class Query {
   public:
    Query(sqlite3* db, sqlite3_stmt* statement) : db_(db), statement_(statement) {}
    ~Query() {
      if (statement_ == nullptr) return;
      sqlite3_reset(statement_);
      sqlite3_clear_bindings(statement_);
    }
    Query(Query&& other) noexcept : db_(other.db_), statement_(std::exchange(other.statement_, nullptr)) {}
    Query& operator=(Query&&) = delete;

    // Parameters in order. Texts must outlive the query.
    Query& Bind(int64_t value) {
      sqlite3_bind_int64(statement_, ++parameters_, value);
      return *this;
    }
    Query& Bind(absl::string_view text) {
      const char* data = text.empty() ? "" : text.data();  // a null pointer would be NULL
      sqlite3_bind_text64(statement_, ++parameters_, data, text.size(), SQLITE_STATIC, SQLITE_UTF8);
      return *this;
    }
    Query& BindNull() {
      sqlite3_bind_null(statement_, ++parameters_);
      return *this;
    }
    // The next row is there; false: no more rows.
    absl::StatusOr<bool> Step() {
      const int code = sqlite3_step(statement_);
      if (code == SQLITE_ROW) return true;
      if (code == SQLITE_DONE) return false;
      if (code == SQLITE_CONSTRAINT_UNIQUE) return absl::AlreadyExistsError("already exists");
      return SqliteStatus(code, "snapshots.db", sqlite3_errmsg(db_));
    }
    absl::Status Run() { return Step().status(); }

    int64_t Int(int column) const { return sqlite3_column_int64(statement_, column); }
    bool IsNull(int column) const { return sqlite3_column_type(statement_, column) == SQLITE_NULL; }
    std::string Text(int column) const {
      const unsigned char* text = sqlite3_column_text(statement_, column);
      if (text == nullptr) return "";
      return std::string(reinterpret_cast<const char*>(text),
                         static_cast<size_t>(sqlite3_column_bytes(statement_, column)));
    }

   private:
    sqlite3* const db_;
    sqlite3_stmt* statement_;
    int parameters_ = 0;
  };

  explicit Database(sqlite3* db) : db_(db) {}
  ~Database() {
    for (auto& [text, statement] : statements_) sqlite3_finalize(statement);
    sqlite3_close(db_);
  }

  // `sql` is a literal: statements are kept by its address.
  absl::StatusOr<Query> Prepare(const char* sql) {
    sqlite3_stmt*& statement = statements_[sql];
    if (statement == nullptr) {
      const int code = sqlite3_prepare_v3(db_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
      if (code != SQLITE_OK) return SqliteStatus(code, "snapshots.db", sqlite3_errmsg(db_));
    }
    return Query(db_, statement);
  }
  absl::Status Execute(const char* sql) {
    const int code = sqlite3_exec(db_, sql, nullptr, nullptr, nullptr);
    return code == SQLITE_OK ? absl::OkStatus() : SqliteStatus(code, "snapshots.db", sqlite3_errmsg(db_));
  }
  int64_t LastId() const { return sqlite3_last_insert_rowid(db_); }
  int64_t Changes() const { return sqlite3_changes64(db_); }
  // A transaction that failed by itself (disk full) is over already.
  void Rollback() {
    if (sqlite3_get_autocommit(db_) == 0) Execute("ROLLBACK").IgnoreError();
  }

  absl::StatusOr<int64_t> Number(const char* sql) {
    ASSIGN_OR_RETURN(Query query, Prepare(sql));
    ASSIGN_OR_RETURN(bool row, query.Step());
    return row ? query.Int(0) : 0;
  }
  absl::StatusOr<Labels> ReadLabels(int64_t id) {
    ASSIGN_OR_RETURN(Query query, Prepare("SELECT key, value FROM labels WHERE snapshot = ?"));
    query.Bind(id);
    Labels labels;
    for (;;) {
      ASSIGN_OR_RETURN(bool row, query.Step());
      if (!row) return labels;
      labels[query.Text(0)] = query.Text(1);
    }
  }
  absl::Status WriteLabels(int64_t id, const Labels& labels) {
    for (const auto& [key, value] : labels) {
      ASSIGN_OR_RETURN(Query query, Prepare("INSERT INTO labels(snapshot, key, value) VALUES(?, ?, ?)"));
      RETURN_IF_ERROR(query.Bind(id).Bind(key).Bind(value).Run());
    }
    return absl::OkStatus();
  }
  absl::Status DeleteLabels(int64_t id) {
    ASSIGN_OR_RETURN(Query query, Prepare("DELETE FROM labels WHERE snapshot = ?"));
    return query.Bind(id).Run();
  }

 private:
  sqlite3* const db_;
  std::map<const char*, sqlite3_stmt*> statements_;
};

namespace {

absl::StatusOr<std::optional<LayerMount>> LayerOf(const auto& query, int first) {
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

absl::StatusOr<std::optional<fuse::IdMapping>> MappingOf(const auto& query, int first) {
  if (query.IsNull(first)) return std::nullopt;
  auto mapping =
      ParseIdMapping({{kLabelUidMapping, query.Text(first)}, {kLabelGidMapping, query.Text(first + 1)}});
  if (!mapping.ok()) return absl::DataLossError(absl::StrCat("snapshots.db: ", mapping.status().message()));
  return mapping;
}

absl::StatusOr<Record> RecordOf(const auto& query) {
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

// Brings an empty file to our schema; checks one that is not.
absl::Status CheckSchema(auto& database, const std::string& path) {
  ASSIGN_OR_RETURN(int64_t version, database.Number("PRAGMA user_version"));
  ASSIGN_OR_RETURN(int64_t application, database.Number("PRAGMA application_id"));
  ASSIGN_OR_RETURN(int64_t tables, database.Number("SELECT count(*) FROM sqlite_schema"));
  if (version == 0 && application == 0 && tables == 0) {
    RETURN_IF_ERROR(database.Execute("BEGIN IMMEDIATE"));
    RETURN_IF_ERROR(database.Execute(kSchema));
    RETURN_IF_ERROR(database.Execute(absl::StrCat("PRAGMA application_id = ", kApplicationId).c_str()));
    RETURN_IF_ERROR(database.Execute(absl::StrCat("PRAGMA user_version = ", MetaStore::kVersion).c_str()));
    return database.Execute("COMMIT");
  }
  if (application != kApplicationId) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, ": a database of another program; move it away or choose another state directory"));
  }
  if (version != MetaStore::kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": made by a newer version (format ", version, ", this one knows ",
                     MetaStore::kVersion, "); run that version, or move the state directory away"));
  }
  return absl::OkStatus();
}

}  // namespace

MetaStore::MetaStore(std::unique_ptr<Database> database) : database_(std::move(database)) {}
MetaStore::~MetaStore() = default;

absl::StatusOr<std::unique_ptr<MetaStore>> MetaStore::Open(const std::string& path) {
  {
    // SQLite gives its other files the mode of this one.
    ASSIGN_OR_RETURN(base::UniqueFd file, base::OpenFile(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0600));
    if (fchmod(file.get(), 0600) != 0) return base::ErrnoStatus(errno, path);
  }
  sqlite3* db = nullptr;
  const int code = sqlite3_open_v2(
      path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
  auto database = std::make_unique<Database>(db);
  if (code != SQLITE_OK) return SqliteStatus(code, path, sqlite3_errstr(code));
  sqlite3_busy_timeout(db, kBusyMilliseconds);
  auto setup = [&]() -> absl::Status {
    // FULL: the log is synced with every commit.
    RETURN_IF_ERROR(
        database->Execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; "
                          "PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF"));
    RETURN_IF_ERROR(CheckSchema(*database, path));
    ASSIGN_OR_RETURN(Database::Query check, database->Prepare("PRAGMA quick_check(1)"));
    ASSIGN_OR_RETURN(bool row, check.Step());
    if (!row || check.Text(0) != "ok") return SqliteStatus(SQLITE_CORRUPT, "damaged", check.Text(0));
    return absl::OkStatus();
  };
  if (absl::Status status = setup(); !status.ok()) {
    return status.message().find(path) == absl::string_view::npos ? base::Annotate(status, path) : status;
  }
  RETURN_IF_ERROR(base::SyncDirectory(path.substr(0, path.rfind('/') + 1)));
  return std::unique_ptr<MetaStore>(new MetaStore(std::move(database)));
}

absl::Status MetaStore::Write(absl::FunctionRef<absl::Status(Transaction&)> body,
                              absl::FunctionRef<void()> undone) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(database_->Execute("BEGIN IMMEDIATE"));
  Transaction transaction(this);
  absl::Status status = body(transaction);
  if (status.ok()) status = database_->Execute("COMMIT");
  if (status.ok()) return status;
  database_->Rollback();
  undone();
  return status;
}

absl::Status MetaStore::Read(absl::FunctionRef<absl::Status(Transaction&)> body) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(database_->Execute("BEGIN"));
  absl::Cleanup end = [this] { database_->Rollback(); };
  Transaction transaction(this);
  return body(transaction);
}

absl::StatusOr<Record> MetaStore::Transaction::Get(const std::string& name) {
  Database& db = *store_->database_;
  ASSIGN_OR_RETURN(Database::Query query,
                   db.Prepare("SELECT " RECORD_COLUMNS " FROM " RECORD_TABLES " WHERE s.name = ?"));
  ASSIGN_OR_RETURN(bool row, query.Bind(name).Step());
  if (!row) {
    return absl::NotFoundError(absl::StrCat("snapshot \"", base::Printable(name), "\": does not exist"));
  }
  ASSIGN_OR_RETURN(Record record, RecordOf(query));
  ASSIGN_OR_RETURN(record.info.labels, db.ReadLabels(record.id));
  return record;
}

absl::StatusOr<bool> MetaStore::Transaction::Exists(const std::string& name) {
  ASSIGN_OR_RETURN(Database::Query query,
                   store_->database_->Prepare("SELECT 1 FROM snapshots WHERE name = ?"));
  return query.Bind(name).Step();
}

absl::StatusOr<std::vector<Link>> MetaStore::Transaction::Chain(int64_t id) {
  ASSIGN_OR_RETURN(
      Database::Query query,
      store_->database_->Prepare(
          "WITH RECURSIVE chain(id, depth) AS (SELECT ?, 0 UNION ALL "
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
  ASSIGN_OR_RETURN(Database::Query query,
                   store_->database_->Prepare("SELECT name FROM snapshots WHERE parent = ? LIMIT ?"));
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
  ASSIGN_OR_RETURN(Database::Query query,
                   store_->database_->Prepare(
                       "SELECT " RECORD_COLUMNS " FROM labels AS l JOIN " RECORD_TABLES
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
  Database& db = *store_->database_;
  std::vector<Record> records;
  std::map<int64_t, size_t> by_id;
  ASSIGN_OR_RETURN(Database::Query query,
                   db.Prepare("SELECT " RECORD_COLUMNS " FROM " RECORD_TABLES " ORDER BY s.name"));
  for (;;) {
    ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) break;
    ASSIGN_OR_RETURN(Record record, RecordOf(query));
    by_id[record.id] = records.size();
    records.push_back(std::move(record));
  }
  ASSIGN_OR_RETURN(Database::Query labels, db.Prepare("SELECT snapshot, key, value FROM labels"));
  for (;;) {
    ASSIGN_OR_RETURN(bool row, labels.Step());
    if (!row) return records;
    auto found = by_id.find(labels.Int(0));
    if (found != by_id.end()) records[found->second].info.labels[labels.Text(1)] = labels.Text(2);
  }
}

absl::StatusOr<std::vector<Link>> MetaStore::Transaction::LazyLinks() {
  ASSIGN_OR_RETURN(Database::Query query,
                   store_->database_->Prepare("SELECT s.id, s.name, " LAYER_COLUMNS
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
  ASSIGN_OR_RETURN(Database::Query query,
                   store_->database_->Prepare("SELECT " RECORD_COLUMNS " FROM " RECORD_TABLES
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
  ASSIGN_OR_RETURN(
      Database::Query query,
      store_->database_->Prepare("SELECT s.id, s.name, z.snapshot IS NOT NULL FROM snapshots AS s "
                                 "LEFT JOIN lazy AS z ON z.snapshot = s.id ORDER BY s.id"));
  std::vector<Row> rows;
  for (;;) {
    ASSIGN_OR_RETURN(bool row, query.Step());
    if (!row) return rows;
    rows.push_back({query.Int(0), query.Text(1), query.Int(2) != 0});
  }
}

absl::Status MetaStore::Transaction::Insert(Record& record) {
  Database& db = *store_->database_;
  std::string uids, gids;
  {
    ASSIGN_OR_RETURN(Database::Query query,
                     db.Prepare("INSERT INTO snapshots(name, parent, kind, created, updated, bytes, inodes, "
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
  record.id = db.LastId();
  RETURN_IF_ERROR(db.WriteLabels(record.id, record.info.labels));
  if (!record.layer.has_value()) return absl::OkStatus();
  ASSIGN_OR_RETURN(Database::Query query,
                   db.Prepare("INSERT INTO lazy(snapshot, layer, meta_path, target, mode, "
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
  Database& db = *store_->database_;
  {
    ASSIGN_OR_RETURN(
        Database::Query query,
        db.Prepare("UPDATE snapshots SET name = ?, parent = ?, kind = 3, created = ?, updated = ?, "
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
  RETURN_IF_ERROR(db.DeleteLabels(record.id));
  return db.WriteLabels(record.id, record.info.labels);
}

absl::Status MetaStore::Transaction::SetLabels(int64_t id, const Labels& labels, absl::Time updated) {
  Database& db = *store_->database_;
  {
    ASSIGN_OR_RETURN(Database::Query query, db.Prepare("UPDATE snapshots SET updated = ? WHERE id = ?"));
    RETURN_IF_ERROR(query.Bind(absl::ToUnixNanos(updated)).Bind(id).Run());
  }
  RETURN_IF_ERROR(db.DeleteLabels(id));
  return db.WriteLabels(id, labels);
}

absl::Status MetaStore::Transaction::SetLayer(int64_t id, const LayerMount& layer) {
  Database& db = *store_->database_;
  ASSIGN_OR_RETURN(Database::Query query,
                   db.Prepare("UPDATE lazy SET layer = ?, meta_path = ?, target = ?, mode = ?, direct = ?, "
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
  return db.Changes() == 1 ? absl::OkStatus() : absl::NotFoundError("no such lazy snapshot");
}

absl::Status MetaStore::Transaction::Delete(int64_t id) {
  ASSIGN_OR_RETURN(Database::Query query, store_->database_->Prepare("DELETE FROM snapshots WHERE id = ?"));
  return query.Bind(id).Run();
}

}  // namespace lazyblob::snapshotter
