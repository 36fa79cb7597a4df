#include "base/sqlite.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::base {
namespace {

constexpr int kBusyMilliseconds = 5000;  // a predecessor that is just dying may still hold the lock

}  // namespace

Sqlite::Query::~Query() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

Sqlite::Query::Query(Query&& other) noexcept
    : database_(other.database_),
      statement_(std::exchange(other.statement_, nullptr)),
      parameters_(other.parameters_) {}

Sqlite::Query& Sqlite::Query::Bind(int64_t value) {
  sqlite3_bind_int64(statement_, ++parameters_, value);
  return *this;
}

Sqlite::Query& Sqlite::Query::Bind(absl::string_view text) {
  const char* data = text.empty() ? "" : text.data();  // a null pointer would be NULL
  sqlite3_bind_text64(statement_, ++parameters_, data, text.size(), SQLITE_STATIC, SQLITE_UTF8);
  return *this;
}

Sqlite::Query& Sqlite::Query::BindNull() {
  sqlite3_bind_null(statement_, ++parameters_);
  return *this;
}

absl::StatusOr<bool> Sqlite::Query::Step() {
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  if (code == SQLITE_CONSTRAINT_UNIQUE || code == SQLITE_CONSTRAINT_PRIMARYKEY) {
    return absl::AlreadyExistsError("already exists");
  }
  return database_->Error(code, sqlite3_errmsg(database_->db_));
}

int64_t Sqlite::Query::Int(int column) const { return sqlite3_column_int64(statement_, column); }

bool Sqlite::Query::IsNull(int column) const {
  return sqlite3_column_type(statement_, column) == SQLITE_NULL;
}

std::string Sqlite::Query::Text(int column) const {
  const unsigned char* text = sqlite3_column_text(statement_, column);
  if (text == nullptr) return "";
  return std::string(reinterpret_cast<const char*>(text),
                     static_cast<size_t>(sqlite3_column_bytes(statement_, column)));
}

int64_t Sqlite::Transaction::LastId() const { return sqlite3_last_insert_rowid(database_->db_); }
int64_t Sqlite::Transaction::Changes() const { return sqlite3_changes64(database_->db_); }

Sqlite::Sqlite(sqlite3* db, std::string path, std::string if_damaged)
    : db_(db), path_(std::move(path)), if_damaged_(std::move(if_damaged)) {}

Sqlite::~Sqlite() {
  for (auto& [text, statement] : statements_) sqlite3_finalize(statement);
  sqlite3_close(db_);
}

absl::StatusOr<std::unique_ptr<Sqlite>> Sqlite::Open(const std::string& path, const SqliteSchema& schema) {
  {
    // SQLite gives its other files the mode of this one.
    ASSIGN_OR_RETURN(UniqueFd file, OpenFile(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0600));
    if (fchmod(file.get(), 0600) != 0) return ErrnoStatus(errno, path);
  }
  sqlite3* db = nullptr;
  const int code = sqlite3_open_v2(
      path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
  std::unique_ptr<Sqlite> database(new Sqlite(db, path, std::string(schema.if_damaged)));
  if (code != SQLITE_OK) return database->Error(code, sqlite3_errstr(code));
  sqlite3_busy_timeout(db, kBusyMilliseconds);
  RETURN_IF_ERROR(database->SetUp(schema));
  RETURN_IF_ERROR(SyncDirectory(path.substr(0, path.rfind('/') + 1)));
  return database;
}

absl::StatusOr<std::vector<std::string>> Sqlite::Check(const std::string& path) {
  sqlite3* db = nullptr;
  const int code = sqlite3_open_v2(
      path.c_str(), &db, SQLITE_OPEN_READONLY | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
  std::unique_ptr<Sqlite> database(new Sqlite(db, path, ""));
  if (code != SQLITE_OK) return database->Error(code, sqlite3_errstr(code));
  sqlite3_busy_timeout(db, kBusyMilliseconds);
  std::vector<std::string> problems;
  const absl::Status status = database->Read([&](Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(Query integrity, transaction.Prepare("PRAGMA integrity_check(100)"));
    for (;;) {
      ASSIGN_OR_RETURN(const bool row, integrity.Step());
      if (!row) break;
      if (integrity.Text(0) != "ok") problems.push_back(integrity.Text(0));
    }
    ASSIGN_OR_RETURN(Query keys, transaction.Prepare("PRAGMA foreign_key_check"));
    for (;;) {
      ASSIGN_OR_RETURN(const bool row, keys.Step());
      if (!row) return absl::OkStatus();
      problems.push_back(absl::StrCat("a row of ", keys.Text(0), " refers to none of ", keys.Text(2)));
    }
  });
  if (absl::IsDataLoss(status) && problems.empty()) problems.push_back("not a database, or damaged");
  if (!status.ok() && !absl::IsDataLoss(status)) return status;
  return problems;
}

absl::Status Sqlite::SetUp(const SqliteSchema& schema) {
  // FULL: the log is synced with every commit.
  RETURN_IF_ERROR(
      Execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; "
              "PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF"));
  RETURN_IF_ERROR(CheckSchema(schema));
  ASSIGN_OR_RETURN(Query check, Prepare("PRAGMA quick_check(1)"));
  ASSIGN_OR_RETURN(bool row, check.Step());
  if (!row || check.Text(0) != "ok") return Error(SQLITE_CORRUPT, absl::StrCat("damaged: ", check.Text(0)));
  return absl::OkStatus();
}

// Brings an empty file to the schema; checks one that is not.
absl::Status Sqlite::CheckSchema(const SqliteSchema& schema) {
  ASSIGN_OR_RETURN(int64_t version, Number("PRAGMA user_version"));
  ASSIGN_OR_RETURN(int64_t application, Number("PRAGMA application_id"));
  ASSIGN_OR_RETURN(int64_t tables, Number("SELECT count(*) FROM sqlite_schema"));
  if (version == 0 && application == 0 && tables == 0) {
    RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE"));
    RETURN_IF_ERROR(Execute(schema.tables));
    RETURN_IF_ERROR(Execute(absl::StrCat("PRAGMA application_id = ", schema.application_id).c_str()));
    RETURN_IF_ERROR(Execute(absl::StrCat("PRAGMA user_version = ", schema.version).c_str()));
    return Execute("COMMIT");
  }
  if (application != schema.application_id) {
    return absl::FailedPreconditionError(absl::StrCat(
        path_, ": a database of another program; move it away or choose another state directory"));
  }
  if (version != schema.version) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": made by a newer version (format ", version, ", this one knows ",
                     schema.version, "); run that version, or move the state directory away"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Sqlite::Query> Sqlite::Prepare(const char* sql) {
  sqlite3_stmt*& statement = statements_[sql];
  if (statement == nullptr) {
    const int code = sqlite3_prepare_v3(db_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
    if (code != SQLITE_OK) return Error(code, sqlite3_errmsg(db_));
  }
  return Query(this, statement);
}

absl::StatusOr<int64_t> Sqlite::Number(const char* sql) {
  ASSIGN_OR_RETURN(Query query, Prepare(sql));
  ASSIGN_OR_RETURN(bool row, query.Step());
  return row ? query.Int(0) : 0;
}

absl::Status Sqlite::Execute(const char* sql) {
  const int code = sqlite3_exec(db_, sql, nullptr, nullptr, nullptr);
  return code == SQLITE_OK ? absl::OkStatus() : Error(code, sqlite3_errmsg(db_));
}

// A transaction that failed by itself (disk full) is over already.
void Sqlite::Rollback() {
  if (sqlite3_get_autocommit(db_) == 0) Execute("ROLLBACK").IgnoreError();
}

absl::Status Sqlite::Write(absl::FunctionRef<absl::Status(Transaction&)> body,
                           absl::FunctionRef<void()> undone) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE"));
  Transaction transaction(this);
  absl::Status status = body(transaction);
  if (status.ok()) status = Execute("COMMIT");
  if (status.ok()) return status;
  Rollback();
  undone();
  return status;
}

absl::Status Sqlite::Read(absl::FunctionRef<absl::Status(Transaction&)> body) {
  absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(Execute("BEGIN"));
  absl::Cleanup end = [this] { Rollback(); };
  Transaction transaction(this);
  return body(transaction);
}

absl::Status Sqlite::Error(int code, absl::string_view why) const {
  const std::string text = absl::StrCat(path_, ": ", why);
  switch (code & 0xff) {
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(
          absl::StrCat(text, "; make room on the disk of the state directory"));
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(absl::StrCat(text, "; restore the file, or ", if_damaged_));
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(absl::StrCat(text, "; another process uses the file"));
    default:
      return absl::InternalError(text);
  }
}

}  // namespace lazyblob::base
